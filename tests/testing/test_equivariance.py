"""The assertion that plugin authors put into their tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation2d, Erosion
from morphlightning.testing import assert_equivariance

IMAGES = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def test_it_passes_what_commutes() -> None:
    assert_equivariance(Dilation2d(1, 4, 3), "shift", IMAGES, amount=2)
    assert_equivariance(Dilation2d(1, 4, 3, border="circular"), "shift", IMAGES)
    assert_equivariance(nn.Sequential(Dilation2d(1, 2, 3), nn.Flatten(), Erosion(288, 3)), "brightness", IMAGES)
    assert_equivariance(nn.AdaptiveAvgPool2d(1), "shift", IMAGES, tolerance=1e-6)


def test_it_fails_what_does_not() -> None:
    with pytest.raises(AssertionError, match="Conv2d does not commute with brightness: a defect of"):
        assert_equivariance(nn.Conv2d(1, 2, 3), "brightness", IMAGES)
    with pytest.raises(AssertionError, match="Sequential does not commute with shift"):
        assert_equivariance(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), "shift", IMAGES)
    with pytest.raises(AssertionError, match="take larger images"):
        assert_equivariance(Dilation2d(1, 4, 13), "shift", IMAGES)


def test_a_tolerance_replaces_the_claim() -> None:
    with pytest.raises(AssertionError, match="does not commute"):
        assert_equivariance(Dilation2d(1, 4, 3), "gain", IMAGES, tolerance=1e-3)
    assert_equivariance(Dilation2d(1, 4, 3), "gain", IMAGES, tolerance=10.0)


def test_unknown_changes_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 'rotation'"):
        assert_equivariance(nn.Identity(), "rotation", IMAGES)  # type: ignore[arg-type]
