from __future__ import annotations

import pytest
import torch
from torch import Tensor

from morphlightning.ridge import FilterBank, NoiseScaling, RidgeRegularizer
from morphlightning.splines import LinearSpline


def firm(t: Tensor) -> Tensor:
    """Rises steeply, then falls back: the derivative of a weakly convex potential."""
    return (8 * t.clamp(-0.02, 0.02) - t.clamp(-0.08, 0.08)) * (t.abs() < 0.0999)


@pytest.fixture
def regularizer() -> RidgeRegularizer:
    torch.manual_seed(0)
    constraint = {"min": -1.0, "odd": True, "level_ends": True}
    spline = LinearSpline(None, 1, knots=41, limit=0.1, init=firm, constraint=constraint)
    return RidgeRegularizer(FilterBank((1, 3, 6), 3), spline, NoiseScaling(6, (0.0, 30 / 255), init=4.0)).double()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 11, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sigma() -> Tensor:
    return torch.tensor([5.0, 15.0, 25.0], dtype=torch.float64) / 255
