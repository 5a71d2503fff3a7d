"""From a specification to a component."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from morphlightning.errors import (
    ConfigError,
    MorphLightningError,
    PluginApiError,
    PluginContractError,
    PluginParameterError,
)
from morphlightning.interfaces import Spec
from morphlightning.registry import _contracts
from morphlightning.registry._catalogue import check_kind, load, near, resolve
from morphlightning.registry._entry_points import EntryPoint

RECORD = "_morphlightning_config"


def build(kind: str, spec: Spec, /, **context: Any) -> Any:
    """A component from its specification.

    Args:
        kind: One of :data:`morphlightning.interfaces.KINDS`.
        spec: A name, a mapping ``{"name": ..., **parameters}``, or an object, which is validated and returned.
        context: What the place of use knows (``channels``, ``channel_dim``); passed on where the component takes a
            parameter of that name, and never part of :func:`config`.

    Raises:
        PluginParameterError: unknown, missing or mistyped parameters; the message shows the signature.
        ConfigError: a value that the component refuses, or a specification that is none.
        PluginContractError: the object is not a component of this kind.
        PluginError: as :func:`get`.
    """
    check_kind(kind)
    if not isinstance(spec, str | Mapping):
        return accept(kind, spec)
    name, params = parse(kind, spec)
    entry = resolve(kind, name)
    factory = load(entry)
    component = _call(entry, factory, _with_context(factory, params, context))
    if faults := _contracts.product_faults(kind, component):
        raise PluginContractError(f"{kind} {name!r} from {entry.provider}: what it builds {'; '.join(faults)}")
    _remember(component, spec)
    return component


def accept(kind: str, component: Any) -> Any:
    """An object handed in directly: returned as it is, once it is clear that it can stand there."""
    if component is None or isinstance(component, bool | int | float | list | tuple):
        raise ConfigError(f"{kind}: got {component!r}, expected a name, a mapping with a 'name', or an object")
    faults = _contracts.product_faults(kind, component)
    if faults:
        raise PluginContractError(f"{kind}: the object {component!r} does not fit. It\n  - " + "\n  - ".join(faults))
    fault = _contracts.api_fault(component.api_version) if hasattr(component, "api_version") else None
    if fault:
        raise PluginApiError(f"{kind}: {type(component).__qualname__} {fault}.")
    return component


def parse(kind: str, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a specification."""
    if isinstance(spec, str):
        return spec, {}
    params = dict(spec)
    name = params.pop("name", None)
    if not isinstance(name, str) or not all(isinstance(key, str) for key in params):
        raise ConfigError(f"{kind}: {dict(spec)!r} needs a 'name', as in {{'name': 'some_name', 'parameter': 1.0}}")
    return name, params


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a component; ``default`` is None where there is none, so that it must be given."""

    name: str
    annotation: str
    default: str | None

    def __str__(self) -> str:
        """As in a signature."""
        typed = f"{self.name}: {self.annotation}" if self.annotation else self.name
        return typed if self.default is None else f"{typed} = {self.default}"


def parameters(factory: Callable[..., Any]) -> list[Parameter]:
    """The parameters that a component takes, in order."""
    return [
        Parameter(
            str(p).partition(":")[0].partition("=")[0].strip(),
            "" if p.annotation is p.empty else _text(p.annotation),
            None if p.default is p.empty else repr(p.default),
        )
        for p in inspect.signature(factory).parameters.values()
    ]


def _text(annotation: Any) -> str:
    """An annotation without the quotes that ``from __future__ import annotations`` puts around it."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _with_context(factory: Any, params: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    accepted = inspect.signature(factory).parameters
    return {key: value for key, value in context.items() if key in accepted} | params


def _call(entry: EntryPoint, factory: Callable[..., Any], params: dict[str, Any]) -> Any:
    where = f"{entry.kind} {entry.name!r} from {entry.provider}"
    shape = f"Its signature: {entry.name}({', '.join(map(str, parameters(factory)))})"
    if misfits := _misfits(factory, params):
        raise PluginParameterError(f"{where}: {'; '.join(misfits)}. {shape}")
    if dataclasses.is_dataclass(factory):
        params = {key: _hashable(value) for key, value in params.items()}
    given = ", ".join(f"{key}={value!r}" for key, value in params.items()) or "nothing"
    try:
        return factory(**params)
    except MorphLightningError as error:
        error.add_note(f"while building {where}, given {given}")
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error} (given: {given}). {shape}") from error
    except TypeError as error:
        raise PluginParameterError(f"{where}: {error} (given: {given}). {shape}") from error


def _misfits(factory: Callable[..., Any], params: dict[str, Any]) -> list[str]:
    """Parameters that are not taken, and those that are missing."""
    taken = inspect.signature(factory).parameters.values()
    named = {p.name: p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind == p.VAR_KEYWORD for p in taken)
    unknown = [key for key in params if key not in named and not open_ended]
    missing = [key for key, p in named.items() if p.default is p.empty and key not in params]
    return [f"there is no parameter {key!r}{near(key, named).rstrip('?')}" for key in unknown] + [
        f"the parameter {key!r} is missing" for key in missing
    ]


def _remember(component: Any, spec: str | Mapping[str, Any]) -> None:
    """Keep the specification beside the object, so that copies and pickles carry it along."""
    # also where a frozen dataclass forbids assignment
    object.__setattr__(component, RECORD, spec if isinstance(spec, str) else dict(spec))


def _hashable(value: Any) -> Any:
    """Lists, as YAML gives them, as the tuples that a frozen dataclass can hash."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
