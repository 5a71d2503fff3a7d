"""Derivative rules: ties of known outcome, and how often the message is a direction of descent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import registry
from morphlightning.errors import ConfigError, PluginParameterError
from morphlightning.interfaces import DerivativeRule

RULES = ["first", "uniform", "all", "bouligand"]


def gradients(x: list[list[float]], w: list[list[float]], u: list[list[float]], derivative) -> tuple[list, list]:
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w)]
    gx, gw = torch.autograd.grad(mf.dilation(*tensors, derivative=derivative), tensors, torch.tensor(u).double())
    return gx.tolist(), gw.tolist()


@pytest.mark.parametrize(
    ("derivative", "u", "to_x", "to_w"),
    [
        ("first", 2.0, [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]),
        ("uniform", 2.0, [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]),
        ("all", 2.0, [2.0, 2.0, 0.0], [2.0, 2.0, 0.0]),
        ("bouligand", 2.0, [2.0, 2.0, 0.0], [2.0, 2.0, 0.0]),
        ("first", -2.0, [-2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]),
        ("uniform", -2.0, [-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0]),
        ("all", -2.0, [-2.0, -2.0, 0.0], [-2.0, -2.0, 0.0]),
        ("bouligand", -2.0, [-2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]),
        ({"name": "uniform", "eps": 1.0}, 3.0, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        ({"name": "bouligand", "eps": 1.0}, 3.0, [3.0, 3.0, 3.0], [3.0, 3.0, 3.0]),
        ({"name": "bouligand", "eps": 0.99}, 3.0, [3.0, 3.0, 0.0], [3.0, 3.0, 0.0]),
    ],
)
def test_one_row_with_two_ties(derivative, u: float, to_x: list[float], to_w: list[float]) -> None:
    gx, gw = gradients([[0.0, 0.0, -1.0]], [[0.0, 0.0, 0.0]], [[u]], derivative)
    assert gx == [to_x]
    assert gw == [to_w]


def test_bouligand_raises_the_least_opposed_input() -> None:
    """Row 1 wants input 0 or 1 up; row 0, not tied, pulls input 0 down: input 1 it is. The weight is the winner's."""
    gx, gw = gradients([[0.0, 0.0]], [[0.0, -5.0], [0.0, 0.0]], [[1.0, -2.0]], "bouligand")
    assert gx == [[1.0, -2.0]]
    assert gw == [[1.0, 0.0], [-2.0, 0.0]]


def test_bouligand_keeps_samples_apart() -> None:
    x, w, u = [[0.0, 0.0], [0.0, 0.0]], [[0.0, -5.0], [0.0, 0.0]], [[3.0, -2.0], [0.0, -2.0]]
    gx, _ = gradients(x, w, u, "bouligand")
    assert gx == [[3.0, -2.0], [-2.0, 0.0]]


def slope(x: Tensor, w: Tensor, u: Tensor, h: Tensor) -> float:
    """Directional derivative of <u, dilation(x)> along h: a flat dilation of h over the active sets."""
    scores = x + w
    active = scores == scores.amax(-1, keepdim=True)
    return float((u * torch.where(active, h, -math.inf).amax(-1)).sum())


def test_the_slope_is_the_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x, w = (torch.randint(0, 2, s, generator=generator).double() for s in ((6,), (8, 6)))
        u, h = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (8, 6))
        moved = mf.dilation(x + 1e-6 * h, w) - mf.dilation(x, w)
        assert slope(x, w, u, h) == pytest.approx(float((u * moved).sum()) / 1e-6, abs=1e-8)


def test_how_often_messages_descend() -> None:
    """The order of the rules on tied cases; figures of the study, with 3000 cases: 87, 96, 98, 97 per cent."""
    generator = torch.Generator().manual_seed(1)
    cases = 300
    descent = dict.fromkeys(RULES, 0)
    for _ in range(cases):
        x, w = (torch.randint(0, 2, s, generator=generator).double() for s in ((6,), (8, 6)))
        u = torch.randn(8, generator=generator, dtype=torch.float64)
        x.requires_grad_()
        for rule in RULES:
            (gx,) = torch.autograd.grad(mf.dilation(x, w, derivative=rule), x, u)
            descent[rule] += slope(x.detach(), w, u, -gx) < -1e-12
    share = {rule: n / cases for rule, n in descent.items()}
    assert 0.80 < share["first"] < 0.92
    assert share["first"] < min(share["uniform"], share["all"], share["bouligand"])
    assert share["uniform"] > 0.93
    assert share["all"] > 0.95
    assert share["bouligand"] > 0.93


def test_a_tied_row_is_lowered_by_bouligand_and_not_by_first() -> None:
    for rule, lowered in (("first", 0.0), ("uniform", 0.05), ("bouligand", 0.1)):
        x, w = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        mf.dilation(x, w, derivative=rule).sum().backward()
        assert mf.dilation(x, w - 0.1 * w.grad).item() == pytest.approx(-lowered)


@pytest.mark.parametrize("rule", RULES)
def test_without_ties_all_rules_are_the_gradient(rule: str) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in ((6, 9), (5, 9))]
    gy = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((tensors[0][:, None] + tensors[1]).amax(-1), tensors, gy)
    seen = torch.autograd.grad(mf.dilation(*tensors, derivative=rule), tensors, gy)
    for a, right in zip(seen, expected):
        torch.testing.assert_close(a, right, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("eps", [-1.0, math.nan])
def test_bad_eps(rule: str, eps: float) -> None:
    with pytest.raises(ConfigError, match="eps must be >= 0"):
        registry.build("derivatives", {"name": rule, "eps": eps})


def test_first_has_no_eps() -> None:
    with pytest.raises(PluginParameterError, match="eps"):
        registry.build("derivatives", {"name": "first", "eps": 0.1})


def test_rules_are_values() -> None:
    zero = registry.build("derivatives", {"name": "bouligand", "eps": 0.0})
    assert registry.build("derivatives", "bouligand") == zero
    assert isinstance(registry.build("derivatives", "first"), DerivativeRule)
