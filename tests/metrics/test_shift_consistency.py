from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.metrics import ShiftConsistency


def test_agrees_with_a_count_by_hand() -> None:
    """A classifier that looks at one pixel: the class is 1 where it is lit."""
    x = torch.zeros(2, 1, 5, 5)
    x[0, 0, 2, 2] = 1  # leaves the pixel under all 8 shifts
    x[1, 0, 0] = 1  # a bright upper row is replicated: it reaches row 2 under none of them

    def logits(x: torch.Tensor) -> torch.Tensor:
        lit = x[:, 0, 2, 2]
        return torch.stack([torch.full_like(lit, 0.5), lit], 1)

    metric = ShiftConsistency()
    metric.update(logits, x)
    assert metric.compute() == {"mean": 0.5, "all": 0.5}
    wide = ShiftConsistency(2)
    wide.update(logits, x)
    # of 24 shifts, 5 bring the bright row down by two; the lone pixel leaves under all
    assert wide.compute()["mean"].item() == pytest.approx((0 + 19 / 24) / 2)
    assert wide.compute()["all"] == 0


def test_what_is_invariant_is_consistent() -> None:
    x = torch.zeros(8, 3, 9, 9)
    x[..., 2:-2, 2:-2] = torch.rand(8, 3, 5, 5)
    metric = ShiftConsistency(2)
    for part in x.split(3):
        metric.update(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), part)
    assert metric.compute() == {"mean": 1, "all": 1}


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="shift=0"):
        ShiftConsistency(0)
    with pytest.raises(ShapeError, match="expected logits"):
        ShiftConsistency().update(lambda x: x, torch.zeros(2, 1, 4, 4))
    with pytest.raises(ShapeError, match=r"\(4, 4\)"):
        ShiftConsistency().update(lambda x: x, torch.zeros(4, 4))
