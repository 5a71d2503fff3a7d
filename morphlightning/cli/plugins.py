"""``morphlightning plugins``: what is installed, in which state, and what each component takes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from morphlightning import registry
from morphlightning.errors import MorphLightningError, PluginNotFoundError
from morphlightning.interfaces import KINDS
from morphlightning.registry import PluginInfo

_COLOURS = {"ok": "green", "ambiguous": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``morphlightning plugins`` and ``morphlightning plugins show NAME``."""
    parser.add_argument("--kind", choices=KINDS, help="components of this kind only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    actions = parser.add_subparsers(dest="action", metavar="show NAME")
    show = actions.add_parser("show", help="parameters and docstring of one component")
    show.add_argument("name", metavar="NAME", help="its name, or distribution:name")
    # SUPPRESS: else the defaults here would overwrite what stood before "show"
    show.add_argument("--kind", choices=KINDS, default=argparse.SUPPRESS)
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; the exit code is 1 where a name is unknown."""
    console = Console()
    try:
        if arguments.action == "show":
            show_plugin(arguments.name, arguments.kind, arguments.json, console)
        else:
            list_plugins(arguments.kind, arguments.json, console)
    except MorphLightningError as error:
        print(f"morphlightning plugins: {error}", file=sys.stderr)
        return 1
    return 0


def list_plugins(kind: str | None, as_json: bool, console: Console) -> None:
    """Print every component: name, kind, distribution, version, state and what it does."""
    found = registry.survey(kind)
    if as_json:
        _print_json([_plain(info) for info in found], console)
        return
    table = Table("kind", "name", "distribution", "version", "state", "what it does", box=None, header_style="bold")
    for info in found:
        state = Text(info.state, style=_COLOURS.get(info.state, "red"))
        table.add_row(info.kind, info.name, info.distribution, info.version, state, Text(info.summary))
    console.print(table)
    for info in found:
        if info.error:
            console.print(Text(f"\n{info.state}: {info.error}", style=_COLOURS.get(info.state, "red")))


def show_plugin(name: str, kind: str | None, as_json: bool, console: Console) -> None:
    """Print all that is known of a name, in every kind that has it.

    Raises:
        PluginNotFoundError: no kind has the name; the near misses of all kinds are listed.
        PluginAmbiguousError: several distributions offer it.
    """
    found = _find(name, kind)
    if as_json:
        _print_json([_plain(info) | _details(info) for info in found], console)
        return
    for info in found:
        _print_one(info, console)


def _find(name: str, kind: str | None) -> list[PluginInfo]:
    if kind is not None:
        return [registry.describe(kind, name)]
    found, misses = [], []
    for each in KINDS:
        try:
            found.append(registry.describe(each, name))
        except PluginNotFoundError as miss:
            misses.append(str(miss))
    if not found:
        near = [miss for miss in misses if "did you mean" in miss]
        raise PluginNotFoundError(
            "\n".join(near) or f"no kind has a component {name!r}; see what there is: morphlightning plugins"
        )
    return found


def _print_one(info: PluginInfo, console: Console) -> None:
    console.print(Text.assemble((info.name, "bold"), f"  {info.kind}, {info.distribution} {info.version}"))
    console.print(Text(f"{info.value}, plugin API {info.api_version or '?'}, {info.state}"))
    if info.error:
        console.print(Text(info.error, style=_COLOURS.get(info.state, "red")))
    details = _details(info)
    if details["parameters"]:
        table = Table("parameter", "type", "default", box=None, header_style="bold")
        for parameter in details["parameters"]:
            default = "(required)" if parameter["default"] is None else parameter["default"]
            table.add_row(Text(parameter["name"]), Text(parameter["annotation"]), Text(default))
        console.print(table)
    console.print(Text(f"\n{details['doc']}\n"), soft_wrap=True)


def _details(info: PluginInfo) -> dict[str, Any]:
    """Parameters and docstring; empty for a component that cannot be loaded."""
    if info.state not in _COLOURS:
        return {"parameters": [], "doc": ""}
    factory = registry.get(info.kind, info.qualified)
    doc = inspect.cleandoc(factory.__doc__ or "") if info.summary else ""
    return {"parameters": [dataclasses.asdict(p) for p in registry.parameters(factory)], "doc": doc}


def _plain(info: PluginInfo) -> dict[str, Any]:
    return dataclasses.asdict(info) | {"qualified": info.qualified}


def _print_json(value: Any, console: Console) -> None:
    """Write JSON unwrapped and unstyled, for other programs to read."""
    console.print(json.dumps(value, indent=2), soft_wrap=True, markup=False, highlight=False)
