"""From a component to plain values, and what a checkpoint says about who provides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from morphlightning.errors import (
    ConfigError,
    PluginError,
    PluginNotFoundError,
)
from morphlightning.interfaces import Spec
from morphlightning.registry._building import RECORD, accept, parse
from morphlightning.registry._catalogue import LOCAL, check_kind, entries, load, names, resolve


def config(kind: str, spec: Spec) -> str | dict[str, Any]:
    """The plain form that goes to hyperparameters and checkpoints: a name, or a mapping of plain values.

    For an object: what it was built from, what its ``to_config()`` gives, or, for a dataclass that is registered, its
    name and fields.

    Raises:
        ConfigError: the object, or one of its parameters, has no plain form; the message says what to do.
    """
    check_kind(kind)
    if not isinstance(spec, str | Mapping):
        spec = _spec_of(kind, spec)
    name, params = parse(kind, spec)
    return {"name": name} | {key: _plain(kind, name, key, value) for key, value in params.items()} if params else name


def provenance(kind: str, spec: Spec) -> dict[str, str]:
    """Who provides a component, as plain values for a checkpoint; :func:`require` checks them on loading."""
    entry = resolve(kind, parse(kind, config(kind, spec))[0])
    api_version = load(entry).api_version
    return {
        "kind": kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "api_version": api_version,
    }


def require(provenances: list[dict[str, str]], where: str) -> None:
    """Check that everything a checkpoint was trained with is installed.

    Args:
        provenances: What :func:`provenance` gave when it was saved.
        where: The file, as the message names it.

    Raises:
        PluginNotFoundError: names every component that is missing, with its distribution and version.
    """
    missing = []
    for needed in provenances:
        found = {(entry.distribution, entry.name) for entry in entries(needed["kind"])}
        if (needed["distribution"], needed["name"]) not in found:
            missing.append(_missing(needed))
    if missing:
        raise PluginNotFoundError(f"{where} was made with components that are not here:\n  - " + "\n  - ".join(missing))


def _missing(needed: Mapping[str, str]) -> str:
    distribution, version = needed["distribution"], needed["version"]
    what = f"{needed['kind']} {needed['name']!r} from {distribution} {version}".rstrip()
    if distribution == LOCAL:
        return f"{what}: it was registered in the session that saved it; use registry.registered around loading, too"
    pinned = f"{distribution}=={version}" if version else distribution
    return f"{what} (plugin API {needed['api_version']}): pip install {pinned}"


def _spec_of(kind: str, component: Any) -> str | Mapping[str, Any]:
    accept(kind, component)
    recorded = getattr(component, RECORD, None)
    if recorded is not None:
        return recorded  # type: ignore[no-any-return]
    if hasattr(component, "to_config"):
        given = component.to_config()
        if not isinstance(given, str | Mapping):
            raise ConfigError(f"{kind}: to_config() of {component!r} gave {given!r}, expected a name or a mapping")
        return given
    name = _registered_name(kind, type(component)) if dataclasses.is_dataclass(component) else None
    if name is None:
        raise ConfigError(
            f"{kind}: {component!r} cannot be saved, for nothing says how to build it again. Give a name or a mapping "
            "instead of the object, define to_config() on its class, or register its class with an entry point "
            "(docs/plugins.md)"
        )
    return {"name": name} | {f.name: getattr(component, f.name) for f in dataclasses.fields(component) if f.init}


def _registered_name(kind: str, cls: type) -> str | None:
    """The name under which a class is registered; only modules of its own package are imported for this."""
    package = cls.__module__.partition(".")[0]
    for entry in entries(kind):
        if entry.distribution != LOCAL and entry.module.partition(".")[0] != package:
            continue
        try:
            component = load(entry)
        except PluginError:  # a broken neighbour is not the class that is looked for
            continue
        if component is cls:
            return entry.name if entry.name in names(kind) else entry.qualified
    return None


def _plain(kind: str, name: str, key: str, value: Any) -> Any:
    """The value in the types of YAML and JSON."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(kind, name, key, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _plain(kind, name, key, item) for k, item in value.items()}
    raise ConfigError(
        f"{kind} {name!r}: parameter {key!r} is a {type(value).__name__}, which a checkpoint cannot hold. "
        "Give numbers, strings, booleans, or lists and mappings of them"
    )
