"""Regularizers that take proximal steps after those of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.models import MorphologicalClassifier
from morphlightning.splines import LinearSpline, SlopeConstraint
from morphlightning.splines.tv2 import active_knots, prox_tv2

LIMITS = (-3.0, 3.0)
IMAGES, LABELS = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(8)


def loader(batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size)


def model(weight: float, projection: str = "step") -> tuple[MorphologicalClassifier, LinearSpline]:
    torch.manual_seed(0)
    activation = {"name": "linear_spline", "constraint": "lipschitz", "metric": "l2", "knots": 21}
    made = MorphologicalClassifier(
        (1, 8, 8),
        channels=(3,),
        activation=activation | {"projection": projection},
        optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.0},
        regularizers=[{"name": "tv2", "weight": weight, "mode": "prox"}],
    )
    (spline,) = (m for m in made.modules() if isinstance(m, LinearSpline))
    nn.init.normal_(spline.values, std=0.3)
    return made, spline


def test_they_come_after_the_optimizer_and_before_the_constraint(make_trainer: Callable[..., L.Trainer]) -> None:
    reference, spline = model(2.0)
    nn.functional.cross_entropy(reference(IMAGES), LABELS).backward()
    stepped = spline.values.detach() - 0.5 * spline.values.grad
    expected = SlopeConstraint(-1, 1).project(prox_tv2(stepped, LIMITS, 1.0), LIMITS, "l2")
    trained, spline = model(2.0)
    make_trainer(max_steps=1).fit(trained, loader(8), loader(8))
    torch.testing.assert_close(spline.values.detach(), expected)
    spline.constraint.check(spline.values, LIMITS)
    assert active_knots(spline.values, LIMITS).sum(1).float().mean() < 10  # of 19


def test_kinks_vanish_for_good(make_trainer: Callable[..., L.Trainer]) -> None:
    def kinks(weight: float, projection: str) -> Any:
        trained, spline = model(weight, projection)
        make_trainer(max_epochs=8).fit(trained, loader(4), loader(8))
        table = spline.table()
        spline.constraint.check(table.values, table.knots)
        return (table.slopes.diff(dim=1).abs() > 1e-5).sum(1).float().mean()

    for projection in ("step", "forward"):
        assert kinks(1.0, projection) < 0.5 * kinks(0.0, projection)
