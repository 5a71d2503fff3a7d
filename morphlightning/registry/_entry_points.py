"""Reads the entry points of the installed distributions, so that one damaged distribution never hides the others.

The ``entrypoints`` package is the reader. It raises for every caller when a single ``entry_points.txt`` is malformed,
and it guesses names and versions from folder names; both are mended here, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import entrypoints

from morphlightning.errors import PluginWarning
from morphlightning.interfaces import KINDS

PREFIX = "morphlightning."
_FOLDER = re.compile(r"(?P<name>.+?)(-(?P<version>\d[^-]*)(-.*)?)?")


@dataclass(frozen=True, order=True)
class EntryPoint:
    """One component that a distribution declares; nothing of it is imported yet."""

    kind: str
    name: str
    module: str
    attribute: str
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """``distribution:name``, which is always unique."""
        return f"{self.distribution}:{self.name}"

    @property
    def value(self) -> str:
        """``module:attribute``, where the component lives."""
        return f"{self.module}:{self.attribute}"

    @property
    def provider(self) -> str:
        """Distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> Any:
        """Import the module and fetch the attribute."""
        loaded: Any = importlib.import_module(self.module)
        for attribute in self.attribute.split("."):
            loaded = getattr(loaded, attribute)
        return loaded


def normalized(distribution: str) -> str:
    """The one spelling of a distribution's name: lower case, runs of ``-_.`` as one hyphen (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan() -> list[EntryPoint]:
    """All entry points in our groups, sorted; where a distribution is on the path twice, the first one counts."""
    path = [os.fspath(folder) for folder in sys.path]
    try:
        found = list(_read(path))
    except Exception as error:  # whatever a foreign file can provoke
        found = list(_read_one_by_one(path, error))
    unique: dict[tuple[str, str, str], EntryPoint] = {}
    for entry in found:
        unique.setdefault((entry.distribution, entry.kind, entry.name), entry)
    return sorted(unique.values())


def _read(path: list[str]) -> Iterator[EntryPoint]:
    """The usual way; raises when any distribution on the path is malformed."""
    seen: dict[str, Any] = {}
    for config, distribution in entrypoints.iter_files_distros(path, repeated_distro="all"):
        name, version = _identify(distribution)
        # egg-info and dist-info of one project, or an older copy further down the path: Python imports the first
        if seen.setdefault(name, distribution) is not distribution:
            continue
        for kind in KINDS:
            if PREFIX + kind in config:
                for key, value in config[PREFIX + kind].items():
                    yield from _parse(kind, key, value, name, version)


def _read_one_by_one(path: list[str], cause: Exception) -> Iterator[EntryPoint]:
    """A scan with a guard around each distribution, and one warning that says what went wrong."""
    seen: set[str] = set()
    lost: list[str] = []
    for distribution in importlib.metadata.distributions(path=path):
        try:
            name, version = normalized(distribution.metadata["Name"]), distribution.version
            declared = [e for e in distribution.entry_points if e.group in {PREFIX + kind for kind in KINDS}]
        except Exception as error:  # this distribution is damaged, the others are not
            lost.append(f"{getattr(distribution, '_path', distribution)} ({type(error).__name__}: {error})")
            continue
        if name not in seen:
            seen.add(name)
            for entry in declared:
                yield from _parse(entry.group.removeprefix(PREFIX), entry.name, entry.value, name, version)
    reason = " ".join(str(cause).split())
    warnings.warn(
        f"the entry points of an installed distribution cannot be read ({type(cause).__name__}: {reason}); "
        + (f"no plugin of {'; '.join(lost)} can be found, all others were" if lost else "all plugins were still found")
        + ". Reinstall or remove that distribution.",
        PluginWarning,
        stacklevel=2,
    )


def _identify(distribution: Any) -> tuple[str, str]:
    """Name and version; ``entrypoints`` splits the folder's name at its first hyphen, wherever that is."""
    folder = "-".join(part for part in (distribution.name, distribution.version) if part)
    match = _FOLDER.fullmatch(folder)
    assert match is not None
    name = normalized(match["name"])
    if match["version"]:
        return name, match["version"]
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, ""


def _parse(kind: str, name: str, value: str, distribution: str, version: str) -> Iterator[EntryPoint]:
    """The entry point, or a warning where its value is not ``module:attribute``."""
    try:
        parsed = entrypoints.EntryPoint.from_string(value.strip(), name)
    except entrypoints.BadEntryPoint:
        parsed = None
    if parsed is None or not parsed.object_name:
        warnings.warn(
            f"{kind} {name!r} of {distribution} {version} is left out: its entry point is {value!r}, expected "
            "'package.module:attribute'. Its author must correct it.",
            PluginWarning,
            stacklevel=2,
        )
        return
    yield EntryPoint(kind, name, parsed.module_name, parsed.object_name, distribution, version)
