"""Heuristics that take a finite step are refused where the Trainer scales their messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import pytest
from torch import Tensor

from morphlightning.data import Digits
from morphlightning.errors import NotSupportedError
from morphlightning.interfaces import Heuristic, SiteView, TrainerFacts
from morphlightning.layers import Dilation
from morphlightning.models import MorphologicalClassifier
from morphlightning.models.finite_steps import refused_heuristics

Make = Callable[..., L.Trainer]


@dataclass(frozen=True)
class OneStep(Heuristic):
    """The message as it is, taken at its word."""

    stage: ClassVar[str] = "message"
    homogeneous: ClassVar[bool] = False

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        return default


@dataclass(frozen=True)
class Accumulated(OneStep):
    """The same, over several batches."""

    accumulation: int = 1


def facts(**settings: Any) -> TrainerFacts:
    usual = {"precision": "32-true", "strategy": "", "world_size": 1, "gradient_clip_val": None}
    return TrainerFacts(**{**usual, "accumulate_grad_batches": 1} | settings)


def test_scaled_losses_and_unknown_accumulation_are_refused() -> None:
    layer = Dilation(3, 2, heuristic=[OneStep(), "count_normalized"])
    assert refused_heuristics(layer, facts()) == []
    assert refused_heuristics(layer, facts(precision="bf16-mixed")) == []
    assert refused_heuristics(layer, facts(precision="16-mixed", accumulate_grad_batches=3)) == [
        "OneStep takes a finite step, and precision 16-mixed scales its message; use bf16-mixed or 32-true",
        "OneStep takes a finite step, and accumulate_grad_batches=3 divides its message, where it expects "
        "accumulation=1; set the same number in both",
    ]
    assert refused_heuristics(Dilation(3, 2), facts(precision="16-mixed", accumulate_grad_batches=3)) == []


def test_the_same_accumulation_in_both_is_right(make_trainer: Make) -> None:
    def fit(heuristic: Heuristic) -> None:
        model = MorphologicalClassifier((1, 8, 8), channels=(4, 4), heuristic=heuristic)
        make_trainer(accumulate_grad_batches=2, max_steps=1).fit(model, Digits(batch_size=32, train_size=128))

    fit(Accumulated(accumulation=2))
    for wrong in (OneStep(), Accumulated(accumulation=3)):
        with pytest.raises(NotSupportedError, match="this model's heuristics cannot train under") as error:
            fit(wrong)
        assert str(error.value).count("\n  - ") == 1  # said once, whatever the number of layers
