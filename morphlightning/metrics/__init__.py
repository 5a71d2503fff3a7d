"""Measures of part-based codes; torchmetrics has everything else. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphlightning.metrics.commutation import DilationCommutation
    from morphlightning.metrics.sparsity import Sparsity

_HOMES = {"DilationCommutation": "commutation", "Sparsity": "sparsity"}

__all__ = ["DilationCommutation", "Sparsity"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
