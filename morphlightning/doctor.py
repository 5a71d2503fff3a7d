"""``morphlightning doctor``: whether this installation can do its work, and what to do where it cannot."""

from __future__ import annotations

import json as json_module
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

Status = Literal["ok", "note", "problem"]

ACCELERATORS = ("numba",)
"""Requirements without which everything works, only slower: their backends report them."""
OPTIONAL = ("triton", "torchvision", "onnx", "onnxruntime", "safetensors")
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")  # GHSA-w37p-236h-pfx3
FACTORIES = ("lightning.pytorch.callbacks_factory", "lightning.fabric.callbacks_factory")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: ``"ok"``, ``"note"`` (works, but worth knowing) or ``"problem"``.
        found: What was found.
        remedy: What to do about it, empty where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def report() -> list[Check]:
    """Look at everything, in an order that survives a broken torchvision (it is asked before lightning is imported).

    A check that itself fails is a problem in the report, never an exception.
    """
    parts = (_python, _requirements, _lightning, _torchvision, _devices, _backends, _plugins, _factories, _machine)
    checks: list[Check] = []
    for part in parts:
        checks += _guarded(part)
    return checks


def main(json: bool = False) -> int:
    """Print the report as a table, or as JSON; return 1 if there is a problem, else 0."""
    checks = report()
    if json:
        print(json_module.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print(checks)
    return int(any(check.status == "problem" for check in checks))


def _guarded(part: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(part())
    except Exception as error:  # a doctor reports what breaks, whatever it is
        name = part.__name__.strip("_")
        return [Check(name, "problem", f"{type(error).__name__}: {error}", "reinstall morphlightning, or report this")]


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Check("morphlightning", "ok", metadata.version("morphlightning"))


def _requirements() -> Iterator[Check]:
    """Installed versions against what our own metadata asks for."""
    for line in metadata.requires("morphlightning") or []:
        requirement = Requirement(line)
        if requirement.marker is None and requirement.name not in ACCELERATORS:
            yield _requirement(requirement)
    for name in OPTIONAL:
        if version := _version(name):
            yield Check(name, "ok", f"{version} (optional)")


def _requirement(requirement: Requirement) -> Check:
    name, version = requirement.name, _version(requirement.name)
    install = f"pip install '{requirement}'"
    if version is None:
        return Check(name, "problem", "not installed", install)
    if not requirement.specifier.contains(Version(version).base_version, prereleases=True):
        return Check(name, "problem", f"{version}, needs {requirement.specifier}", install)
    return Check(name, "ok", version)


def _lightning() -> Iterator[Check]:
    for name in ("lightning", "pytorch-lightning"):
        if _version(name) in MALICIOUS_LIGHTNING:
            yield Check(
                f"{name} release",
                "problem",
                f"{_version(name)} was a malicious upload (GHSA-w37p-236h-pfx3)",
                "remove it, change every credential this machine held, then pip install 'lightning>=2.6.6'",
            )


def _torchvision() -> Iterator[Check]:
    from morphlightning.vision import torchvision_status

    said = torchvision_status()
    state, _, detail = said.partition(":")
    if state == "broken":
        yield Check("torchvision pair", "problem", detail.strip(), "see the message, or pip uninstall torchvision")
    else:
        yield Check("torchvision pair", "note" if state == "guarded" else "ok", said)


def _devices() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    remedy = f"OMP_NUM_THREADS={cores}, or torch.set_num_threads({cores})" if threads > cores else ""
    yield Check("threads", "note" if remedy else "ok", f"torch uses {threads} threads on {cores} cores", remedy)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda:
        yield Check("cuda", "note", f"torch is built for CUDA {torch.version.cuda}, but no GPU answers", "nvidia-smi")
    else:
        yield Check("cuda", "ok", "torch is built for the CPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "available")


def _backends() -> Iterator[Check]:
    from morphlightning.backends import available

    for name, reason in available().items():
        works = reason == "available"
        version = f" ({name} {_version(name)})" if works and _version(name) else ""
        remedy = f"pip install {name}" if not works and name in ACCELERATORS else ""
        yield Check(f"backend {name}", "ok" if works else "note", reason + version, remedy)


def _plugins() -> Iterator[Check]:
    from morphlightning.registry import survey

    found = survey()
    broken = [plugin for plugin in found if plugin.state not in ("ok", "ambiguous")]
    distributions = sorted({f"{plugin.distribution} {plugin.version}".strip() for plugin in found})
    yield Check("plugins", "ok", f"{len(found) - len(broken)} of {len(found)} usable, from {', '.join(distributions)}")
    for plugin in found:
        if plugin.state == "ambiguous":
            yield Check(f"plugin {plugin.kind} {plugin.qualified}", "note", plugin.error, "use the qualified name")
    for plugin in broken:
        ours = plugin.distribution == "morphlightning"
        yield Check(
            f"plugin {plugin.kind} {plugin.qualified}",
            "problem" if ours else "note",
            f"{plugin.state}: {plugin.error}",
            "reinstall morphlightning" if ours else f"pip install -U {plugin.distribution}, or uninstall it",
        )


def _factories() -> Iterator[Check]:
    """Callbacks that installed packages add to every Trainer; Lightning fails outright where one of them fails."""
    for group in FACTORIES:
        for entry in metadata.entry_points(group=group):
            owner = entry.dist.name if entry.dist else "an unknown distribution"
            yield Check(
                f"callbacks factory {entry.name}",
                "note",
                f"{owner} adds callbacks to every Trainer ({group}: {entry.value})",
                f"if Trainer() fails, pip uninstall {owner}",
            )


def _machine() -> Iterator[Check]:
    folder = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            yield Check("working folder", "ok", f"{folder} can be written")
    except OSError as error:
        yield Check("working folder", "problem", f"{folder}: {error}", "change to a folder of your own, or free space")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table("", "what", "found", title="morphlightning doctor", title_justify="left")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n-> {check.remedy}", style="bold")
        table.add_row(Text(check.status, style=colours[check.status]), Text(check.name), found)
    console = Console()
    console.print(table)
    problems = sum(check.status == "problem" for check in checks)
    console.print(f"{problems} problem{'' if problems == 1 else 's'} found." if problems else "No problem found.")
