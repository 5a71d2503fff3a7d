"""Measures of part-based codes and of guarantees; torchmetrics has everything else. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphlightning.metrics.attack_gap import AttackGap
    from morphlightning.metrics.certified import CertifiedAccuracy, CertifiedRadius
    from morphlightning.metrics.commutation import DilationCommutation
    from morphlightning.metrics.deformation_stability import DeformationStability
    from morphlightning.metrics.equivariance_defect import EquivarianceDefect
    from morphlightning.metrics.generalization import GeneralizationGap
    from morphlightning.metrics.information import InformationInWeights, WinningTaps
    from morphlightning.metrics.shift_consistency import ShiftConsistency
    from morphlightning.metrics.sparsity import Sparsity

_HOMES = {
    "AttackGap": "attack_gap",
    "CertifiedAccuracy": "certified",
    "CertifiedRadius": "certified",
    "DeformationStability": "deformation_stability",
    "DilationCommutation": "commutation",
    "EquivarianceDefect": "equivariance_defect",
    "GeneralizationGap": "generalization",
    "InformationInWeights": "information",
    "ShiftConsistency": "shift_consistency",
    "Sparsity": "sparsity",
    "WinningTaps": "information",
}

__all__ = [
    "AttackGap",
    "CertifiedAccuracy",
    "CertifiedRadius",
    "DeformationStability",
    "DilationCommutation",
    "EquivarianceDefect",
    "GeneralizationGap",
    "InformationInWeights",
    "ShiftConsistency",
    "Sparsity",
    "WinningTaps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
