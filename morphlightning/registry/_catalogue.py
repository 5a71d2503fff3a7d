"""What is installed: names, their resolution, and the classes behind them, imported on demand."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from morphlightning.errors import (
    ConfigError,
    PluginAmbiguousError,
    PluginApiError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
)
from morphlightning.interfaces import KINDS
from morphlightning.registry import _contracts, _entry_points
from morphlightning.registry._entry_points import EntryPoint

BUILT_IN = "morphlightning"
LOCAL = "local"
SWITCH = "MORPHLIGHTNING_PLUGINS"

_local: dict[EntryPoint, Any] = {}
_loaded: dict[EntryPoint, Any] = {}


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """One component as ``morphlightning plugins`` lists it.

    Attributes:
        kind: One of :data:`morphlightning.interfaces.KINDS`.
        name: The name that ``build`` takes.
        distribution: The distribution that offers it (``"local"`` for :func:`registered` ones).
        version: That distribution's version.
        value: ``module:attribute`` of the entry point.
        state: ``"ok"``, ``"ambiguous"`` (only the qualified name works), ``"broken"`` (does not import),
            ``"incompatible"`` (other API version) or ``"invalid"`` (not a component of its kind).
        summary: First line of its docstring.
        api_version: The plugin API it was written for.
        error: What is wrong, and what to do about it; empty where nothing is.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str
    state: str
    summary: str = ""
    api_version: str = ""
    error: str = ""

    @property
    def qualified(self) -> str:
        """``distribution:name``, which works whatever else is installed."""
        return f"{self.distribution}:{self.name}"


def names(kind: str) -> list[str]:
    """Names of a kind's components, sorted; imports none. A name that two distributions claim is given qualified."""
    found = entries(kind)
    claims = Counter(entry.name for entry in found)
    return sorted(entry.name if claims[entry.name] == 1 else entry.qualified for entry in found)


def describe(kind: str, name: str) -> PluginInfo:
    """What is known of one component, whatever its state.

    Raises:
        PluginNotFoundError: nobody offers the name.
        PluginAmbiguousError: the name is bare and two distributions offer it.
    """
    return _inspect(resolve(kind, name))


def survey(kind: str | None = None) -> list[PluginInfo]:
    """All components, of one kind or of all; each is imported, and a broken one is listed with its error."""
    return [_inspect(entry) for k in (KINDS if kind is None else (kind,)) for entry in entries(k)]


def get(kind: str, name: str) -> Any:
    """The class or factory behind a name, imported when first asked for, and validated.

    Raises:
        PluginNotFoundError: nobody offers the name; the message has the near misses.
        PluginAmbiguousError: two distributions offer it; the message has the qualified names.
        PluginLoadError: its module does not import.
        PluginApiError: it was written for another version of the plugin API.
        PluginContractError: it is not a component of this kind; the message lists every fault.
    """
    return _get(kind, name, os.environ.get(SWITCH, ""), tuple(_local))


@functools.lru_cache(maxsize=256)
def _get(kind: str, name: str, switch: str, local: tuple[EntryPoint, ...]) -> Any:
    """Functional operators ask at every call; what the answer depends on is in the key, or clears it in refresh()."""
    return load(resolve(kind, name))


def inventory() -> list[tuple[str, str, str, str, str]]:
    """Everything that is installed as (kind, name, value, distribution, version), sorted; imports nothing."""
    return sorted((e.kind, e.name, e.value, e.distribution, e.version) for kind in KINDS for e in entries(kind))


def fingerprint() -> str:
    """Digest of :func:`inventory`: processes with equal digests see the same plugins."""
    return hashlib.sha256(repr(inventory()).encode()).hexdigest()


def refresh() -> None:
    """Look again at what is installed (after ``pip install`` in a running notebook)."""
    importlib.invalidate_caches()
    _scan.cache_clear()
    _get.cache_clear()
    _loaded.clear()


@contextmanager
def registered(kind: str, name: str, component: Any) -> Iterator[None]:
    """Offer a class or factory by name inside a ``with`` block, as distribution ``local``: for notebooks and tests.

    Example:
        >>> with registered("derivatives", "mine", MyRule):  # doctest: +SKIP
        ...     model = MorphologicalClassifier(derivative="mine")
    """
    check_kind(kind)
    module, attribute = getattr(component, "__module__", "?"), getattr(component, "__qualname__", repr(component))
    entry = EntryPoint(kind, name, module, attribute, LOCAL, "")
    if any((known.kind, known.name) == (kind, name) for known in _local):
        raise ConfigError(f"{kind} {name!r} is registered in this session already; take another name")
    _validate(entry, component)
    _local[entry] = component
    try:
        yield
    finally:
        del _local[entry]


@functools.cache
def _scan() -> tuple[EntryPoint, ...]:
    return tuple(_entry_points.scan())


def _allowed(entry: EntryPoint) -> bool:
    """Whether the environment variable lets a distribution take part."""
    switch = os.environ.get(SWITCH, "").strip()
    wanted = {_entry_points.normalized(part.strip()) for part in switch.split(",")}
    return not switch or entry.distribution in wanted | {BUILT_IN, LOCAL}


def entries(kind: str) -> list[EntryPoint]:
    """Everything that is offered of a kind: installed and let in, or registered in this session."""
    check_kind(kind)
    return [entry for entry in (*_scan(), *_local) if entry.kind == kind and _allowed(entry)]


def check_kind(kind: str) -> None:
    """Raise ConfigError where ``kind`` is none."""
    if kind not in KINDS:
        raise ConfigError(f"there is no kind of component {kind!r}{near(kind, KINDS)}; kinds are {', '.join(KINDS)}")


def near(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what it may have been meant to be."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def resolve(kind: str, name: str) -> EntryPoint:
    """The one entry point behind a bare or qualified name; imports nothing."""
    distribution, _, bare = name.rpartition(":")
    found = [entry for entry in entries(kind) if entry.name == bare]
    if distribution:
        found = [entry for entry in found if entry.distribution == _entry_points.normalized(distribution)]
    if not found:
        raise PluginNotFoundError(_unknown(kind, name, bare))
    if len(found) > 1:
        raise PluginAmbiguousError(_ambiguous(found))
    return found[0]


def _unknown(kind: str, name: str, bare: str) -> str:
    known = names(kind)
    message = f"{kind}: nothing is installed under the name {name!r}"
    message += near(name, known + [entry.qualified for entry in entries(kind)]) or "."
    message += f" Known: {', '.join(known) or 'none'}."
    hidden = [e.qualified for e in _scan() if e.kind == kind and e.name == bare and not _allowed(e)]
    if hidden:
        message += f" Installed, but switched off by {SWITCH}={os.environ[SWITCH]}: {', '.join(hidden)}."
    elsewhere = [k for k in KINDS if k != kind and any(e.name == bare for e in entries(k))]
    if elsewhere and not hidden:
        message += f" There is a {bare!r} among the {' and the '.join(elsewhere)}."
    return message + f" See what there is: morphlightning plugins --kind {kind}"


def _ambiguous(rivals: list[EntryPoint]) -> str:
    entry = rivals[0]
    offers = ", ".join(f"{rival.qualified} ({rival.provider})" for rival in rivals)
    return (
        f"{entry.kind}: the name {entry.name!r} is offered by {len(rivals)} distributions: {offers}. "
        f"Use a qualified name, such as {entry.qualified!r}."
    )


def load(entry: EntryPoint) -> Any:
    """The class or factory behind an entry point, imported once and validated."""
    if entry in _local:
        return _local[entry]
    if entry not in _loaded:
        try:
            component = entry.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module can raise
            raise PluginLoadError(
                f"{entry.kind} {entry.name!r} from {entry.provider} ({entry.value}) failed to import: "
                f"{type(error).__name__}: {error}. Try: pip install -U {entry.distribution}, or remove it."
            ) from error
        _validate(entry, component)
        _loaded[entry] = component
    return _loaded[entry]


def _validate(entry: EntryPoint, component: Any) -> None:
    where = f"{entry.kind} {entry.name!r} from {entry.provider} ({entry.value})"
    fault = _contracts.api_fault(component.api_version) if hasattr(component, "api_version") else None
    if fault:
        raise PluginApiError(f"{where} {fault}.")
    faults = _contracts.faults(entry.kind, component)
    if faults:
        raise PluginContractError(f"{where} is not a component of this kind. It\n  - " + "\n  - ".join(faults))


def _inspect(entry: EntryPoint) -> PluginInfo:
    known = (entry.kind, entry.name, entry.distribution, entry.version, entry.value)
    try:
        component = load(entry)
    except PluginError as error:
        states: dict[type[PluginError], str] = {
            PluginLoadError: "broken",
            PluginApiError: "incompatible",
            PluginContractError: "invalid",
        }
        return PluginInfo(*known, states[type(error)], error=str(error))
    rivals = [other for other in entries(entry.kind) if other.name == entry.name]
    state, error_text = ("ambiguous", _ambiguous(rivals)) if len(rivals) > 1 else ("ok", "")
    return PluginInfo(*known, state, summary(component), component.api_version, error_text)


def summary(component: Any) -> str:
    """First line of a component's docstring; the signature that a dataclass writes there by itself is none."""
    doc = inspect.cleandoc(component.__doc__ or "")
    return "" if doc.startswith(f"{getattr(component, '__name__', '')}(") else doc.partition("\n")[0]
