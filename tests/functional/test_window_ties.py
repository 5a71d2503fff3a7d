"""Ties in windows, by brute force: what each derivative rule sends where."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf

RULES = ["first", "uniform", "all", "bouligand"]
BORDERS = ["neutral", "reflect", "replicate", "circular", "constant"]


def integers(*shape: int, seed: int = 0, low: int = -1, high: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).double()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("operator", "sign"), [(mf.dilation2d, 1), (mf.erosion2d, -1)])
def test_ties_in_windows(window_oracle, rule: str, border: str, operator, sign: int) -> None:
    """Lowest input position first: channel, then position; a padded copy of a pixel counts as that pixel."""
    for seed, (stride, spacing, padding, groups) in enumerate([(1, 1, "same", 1), (2, 1, 1, 2), (1, 2, "same", 2)]):
        x, b = integers(2, 2, 4, 5, seed=seed), integers(2, 2 // groups, 3, 2, seed=seed + 1)
        b[0, 0, 1, 0] = -math.inf
        how = {
            "stride": stride,
            "dilation": spacing,
            "padding": padding,
            "groups": groups,
            "border": border,
            "value": 1.0,
        }
        x.requires_grad_(), b.requires_grad_()
        y = operator(x, b, derivative=rule, **how)
        gy = integers(*y.shape, seed=seed + 2, low=-3, high=4)
        seen = torch.autograd.grad(y, (x, b), gy)
        expected = window_oracle.pull_back(x.detach(), b.detach(), sign, gy, rule, **how)
        for a, right, what in zip(seen, expected, ("x", "b"), strict=True):
            torch.testing.assert_close(a, right, msg=lambda m: f"{what}, {how}: {m}")


def test_the_lowest_position_wins() -> None:
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    y = mf.dilation2d(x, torch.zeros(1, 2, 3, 3))
    y[0, 0, 1, 1].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 0, 0]]
    x.grad = None
    mf.dilation2d(x, torch.zeros(1, 2, 3, 3), border="circular")[0, 0, 2, 2].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 0, 0]]  # pixel 0 stands after the last one, too
    x.grad = None
    mf.dilation2d(x, torch.zeros(1, 2, 3, 3), border="constant")[0, 0, 0, 0].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 0, 0]]  # the border ties and loses
    x.grad = None
    mf.dilation2d(x, torch.zeros(1, 2, 3, 3), border="constant", value=1.0)[0, 0, 0, 0].backward()
    assert not x.grad.any()
