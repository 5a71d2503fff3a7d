"""Lightning callbacks: what guards a run, and what draws its figures.

Names are imported on first use, so a callback that needs matplotlib costs nothing to those who do not draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from morphlightning.callbacks.beta_schedule import BetaSchedule
    from morphlightning.callbacks.figures import (
        ConfusionMatrix,
        LearningCurves,
        MessagePaths,
        Reconstructions,
        SplineFigures,
        StructuringFunctions,
        WeightActivity,
    )
    from morphlightning.callbacks.finite import FiniteGuard
    from morphlightning.callbacks.grow import GrowSubnetwork
    from morphlightning.callbacks.morph_updates import MorphUpdates
    from morphlightning.callbacks.random_state import RandomState
    from morphlightning.callbacks.rank_agreement import RankAgreement
    from morphlightning.callbacks.sigterm import GracefulSigterm
    from morphlightning.callbacks.start_guard import StartGuard
    from morphlightning.callbacks.touches import TouchCounts
    from morphlightning.callbacks.whole_objective import WholeObjective

_HOMES = {
    "BetaSchedule": "beta_schedule",
    "ConfusionMatrix": "figures",
    "FiniteGuard": "finite",
    "GracefulSigterm": "sigterm",
    "GrowSubnetwork": "grow",
    "LearningCurves": "figures",
    "MessagePaths": "figures",
    "MorphUpdates": "morph_updates",
    "RandomState": "random_state",
    "RankAgreement": "rank_agreement",
    "Reconstructions": "figures",
    "SplineFigures": "figures",
    "StartGuard": "start_guard",
    "StructuringFunctions": "figures",
    "TouchCounts": "touches",
    "WeightActivity": "figures",
    "WholeObjective": "whole_objective",
}

__all__ = [
    "BetaSchedule",
    "ConfusionMatrix",
    "FiniteGuard",
    "GracefulSigterm",
    "GrowSubnetwork",
    "LearningCurves",
    "MessagePaths",
    "MorphUpdates",
    "RandomState",
    "RankAgreement",
    "Reconstructions",
    "SplineFigures",
    "StartGuard",
    "StructuringFunctions",
    "TouchCounts",
    "WeightActivity",
    "WholeObjective",
    "default_callbacks",
    "missing_callbacks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def default_callbacks() -> list[Callback]:
    """What every model of ours runs with: RankAgreement, FiniteGuard, GracefulSigterm, RandomState, StartGuard."""
    from morphlightning.callbacks.finite import FiniteGuard
    from morphlightning.callbacks.random_state import RandomState
    from morphlightning.callbacks.rank_agreement import RankAgreement
    from morphlightning.callbacks.sigterm import GracefulSigterm
    from morphlightning.callbacks.start_guard import StartGuard

    return [RankAgreement(), FiniteGuard(), GracefulSigterm(), RandomState(), StartGuard()]


def missing_callbacks(present: Iterable[Callback]) -> list[Callback]:
    """The default callbacks of which ``present`` holds no instance, for ``LightningModule.configure_callbacks``.

    Lightning replaces a Trainer's callback by the module's own of the same type. Returning only what is missing makes
    the user's instance win::

        def configure_callbacks(self):
            return missing_callbacks(self.trainer.callbacks)

    Args:
        present: The Trainer's callbacks.
    """
    held = list(present)
    return [default for default in default_callbacks() if not any(isinstance(own, type(default)) for own in held)]
