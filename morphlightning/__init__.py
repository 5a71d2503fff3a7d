"""Networks that are not smooth, on PyTorch Lightning, with every ingredient a plugin.

Everything is imported when it is first used: ``import morphlightning`` loads neither Lightning nor any plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from morphlightning import vision as _vision

if TYPE_CHECKING:
    from morphlightning import (
        bouligand,
        bregman,
        callbacks,
        data,
        errors,
        flows,
        functional,
        guarantees,
        interfaces,
        inverse,
        layers,
        lipschitz,
        metrics,
        models,
        registry,
        ridge,
        splines,
        structure,
        testing,
    )
    from morphlightning.checkpoint_io import SafeCheckpointIO
    from morphlightning.layers import apply_update_heuristics
    from morphlightning.models import (
        CertifiedClassifier,
        LiftedModule,
        MorphologicalAutoencoder,
        MorphologicalClassifier,
        NormalizingFlow,
        RidgeRegularizerDenoiser,
    )

__version__ = "0.1.0"

_MODULES = (
    "bouligand",
    "bregman",
    "callbacks",
    "data",
    "errors",
    "flows",
    "functional",
    "guarantees",
    "interfaces",
    "inverse",
    "layers",
    "lipschitz",
    "metrics",
    "models",
    "registry",
    "ridge",
    "splines",
    "structure",
    "testing",
)
_NAMES = {
    "CertifiedClassifier": "models",
    "LiftedModule": "models",
    "MorphologicalAutoencoder": "models",
    "MorphologicalClassifier": "models",
    "NormalizingFlow": "models",
    "RidgeRegularizerDenoiser": "models",
    "SafeCheckpointIO": "checkpoint_io",
    "apply_update_heuristics": "layers",
}
__all__ = [
    "CertifiedClassifier",
    "LiftedModule",
    "MorphologicalAutoencoder",
    "MorphologicalClassifier",
    "NormalizingFlow",
    "RidgeRegularizerDenoiser",
    "SafeCheckpointIO",
    "__version__",
    "apply_update_heuristics",
    "bouligand",
    "bregman",
    "callbacks",
    "data",
    "errors",
    "flows",
    "functional",
    "guarantees",
    "interfaces",
    "inverse",
    "layers",
    "lipschitz",
    "metrics",
    "models",
    "registry",
    "ridge",
    "splines",
    "structure",
    "testing",
]

_vision.guard()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"morphlightning.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"morphlightning.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'morphlightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_NAMES])
