"""What the object behind an entry point must be, kind by kind; every fault is collected, none is raised here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from morphlightning import interfaces
from morphlightning.interfaces import Component

BASES: dict[str, tuple[type[Component], ...]] = {
    "derivatives": (interfaces.DerivativeRule,),
    "heuristics": (interfaces.Heuristic,),
    "initializers": (interfaces.Initializer,),
    "optimizers": (interfaces.TorchOptimizer, interfaces.Loop),
    "regularizers": (interfaces.Regularizer,),
}
_CHOICES = {
    "syncs": ("gradients", "statistics", "parameters"),
    "support": ("first", "active"),
    "scope": ("row", "sample"),
    "stage": ("message", "route", "update"),
    "homogeneous": (True, False),
}
_DATA = ("none", "inputs", "pairs")
_REDUCTIONS = ("sum", "min", "max", "gather")
_RECORDED = frozenset({"count", "gaps", "samples"})
_STATISTICS = _RECORDED | {"lr"}


def api_fault(written_for: Any) -> str | None:
    """Why a component of this API version cannot be used, and which side to upgrade; None where it can."""
    ours = interfaces.API_VERSION
    try:
        major, minor = (int(part) for part in written_for.split("."))
    except (AttributeError, ValueError):
        return f"declares api_version = {written_for!r}; expected a string such as {ours!r}"
    our_major, our_minor = (int(part) for part in ours.split("."))
    if (major, minor) > (our_major, our_minor):
        return f"was written for plugin API {written_for}, this morphlightning speaks {ours}: upgrade morphlightning"
    if major < our_major:
        return f"was written for plugin API {written_for}, this morphlightning speaks {ours}: upgrade the plugin"
    return None


def faults(kind: str, factory: Any) -> list[str]:
    """Everything that keeps ``factory`` from being a component of ``kind``; empty where nothing does."""
    if kind in BASES:
        return _class_faults(kind, factory)
    return _factory_faults(kind, factory)


def product_faults(kind: str, component: Any) -> list[str]:
    """Everything that keeps the object ``component`` from standing where a component of ``kind`` is asked for."""
    if inspect.isclass(component):
        return [f"is the class {component.__name__}, expected an object: {component.__name__}(...)"]
    if kind in BASES:
        return _class_faults(kind, type(component))
    if kind == "activations":
        return [] if isinstance(component, nn.Module) else [f"is a {type(component).__name__}, expected an nn.Module"]
    from lightning.pytorch import Callback

    if not isinstance(component, Callback):
        return [f"is a {type(component).__name__}, expected a lightning.pytorch.Callback"]
    return _reads_faults(component)


def _class_faults(kind: str, cls: Any) -> list[str]:
    bases = BASES[kind]
    wanted = " or ".join(f"morphlightning.interfaces.{base.__name__}" for base in bases)
    if not inspect.isclass(cls):
        return [f"is a {type(cls).__name__}, expected a subclass of {wanted}"]
    found = []
    if not issubclass(cls, bases):
        found.append(f"is not a subclass of {wanted}")
        if len(bases) == 1:
            missing = [member for member in sorted(bases[0].__abstractmethods__) if not hasattr(cls, member)]
            found += [f"has no method {member}()" for member in missing]
    found += [f"does not define {member}()" for member in sorted(getattr(cls, "__abstractmethods__", ()))]
    found += _dataclass_faults(cls, frozen=not issubclass(cls, interfaces.Loop))
    for attribute, choices in _CHOICES.items():
        if hasattr(cls, attribute) and getattr(cls, attribute) not in choices:
            found.append(f"{attribute} = {getattr(cls, attribute)!r}, expected one of {', '.join(map(repr, choices))}")
    if kind == "heuristics":
        found += _stage_faults(cls)
    if kind == "initializers":
        found += _data_faults(cls)
    return found


def _dataclass_faults(cls: type, frozen: bool) -> list[str]:
    decorator = "@dataclass(frozen=True)" if frozen else "@dataclass"
    if not dataclasses.is_dataclass(cls):
        return [f"is not a dataclass: decorate it with {decorator}"]
    if frozen and not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return [f"is a dataclass that is not frozen: decorate it with {decorator}"]
    return []


def _stage_faults(cls: Any) -> list[str]:
    stage = getattr(cls, "stage", None)
    if stage is None:
        return ["declares no stage: set stage = 'message', 'route' or 'update'"]
    found = []
    if stage in _CHOICES["stage"] and getattr(cls, stage, None) in (None, getattr(interfaces.Heuristic, stage)):
        found.append(f"declares stage {stage!r} but does not define {stage}()")
    needs: Any = getattr(cls, "needs", frozenset())
    if not isinstance(needs, frozenset) or not needs <= _STATISTICS:
        found.append(f"needs = {needs!r}, expected a frozenset of {sorted(_STATISTICS)}")
    return found


def _data_faults(cls: Any) -> list[str]:
    data, base = getattr(cls, "data", "none"), interfaces.Initializer
    if data not in _DATA:
        return [f"data = {data!r}, expected one of {', '.join(map(repr, _DATA))}"]
    if data == "none":
        return []
    own = {name: getattr(cls, name, None) for name in ("begin", "update", "finish")}
    found = [
        f"declares data = {data!r} but does not define {name}()"
        for name, method in own.items()
        if method in (None, getattr(base, name))
    ]
    reduce: Any = getattr(cls, "reduce", {})
    if not isinstance(reduce, Mapping) or not reduce or not set(reduce.values()) <= set(_REDUCTIONS):
        found.append(
            f"reduce = {reduce!r}, expected a mapping of entries of the state to {', '.join(map(repr, _REDUCTIONS))}"
        )
    return found


def _factory_faults(kind: str, factory: Any) -> list[str]:
    found = []
    if not callable(factory):
        found.append(f"is a {type(factory).__name__}, expected a class or a function")
    elif kind == "activations" and inspect.isclass(factory) and not issubclass(factory, nn.Module):
        found.append("is a class but not a subclass of torch.nn.Module")
    if not isinstance(getattr(factory, "api_version", None), str):
        found.append(f"has no api_version: set api_version = {interfaces.API_VERSION!r}")
    if kind == "diagnostics":
        found += _reads_faults(factory)
    return found


def _reads_faults(diagnostic: Any) -> list[str]:
    reads = getattr(diagnostic, "reads", None)
    if isinstance(reads, frozenset) and reads <= _RECORDED:
        return []
    return [f"reads = {reads!r}, expected a frozenset of {sorted(_RECORDED)} (empty where it reads none)"]
