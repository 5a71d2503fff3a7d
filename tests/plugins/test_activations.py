from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from morphlightning_plugins.activations import Absolute, PReLU
from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Constrained
from morphlightning.testing import check_component


def build(spec: Any, **context: Any) -> nn.Module:
    module: nn.Module = registry.build("activations", spec, **context)
    return module


def test_relu() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(build("relu", channels=3)(x), x.clamp_min(0))


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 4, 3), (2, 4, 3, 5)])
def test_soft_threshold_is_the_proximal_map_of_the_absolute_value(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    channel_dim = 1 if len(shape) > 1 else 0
    module = build({"name": "soft_threshold", "threshold": 0.3}, channels=4, channel_dim=channel_dim)
    torch.testing.assert_close(module(x), x.sign() * (x.abs() - 0.3).clamp_min(0))


def test_soft_threshold_has_one_threshold_a_channel() -> None:
    module = build("soft_threshold", channels=2, channel_dim=-1)
    with torch.no_grad():
        module.threshold.copy_(torch.tensor([0.0, 10.0]))
    x = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    assert torch.equal(module(x).detach(), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))


def test_soft_threshold_stays_non_negative() -> None:
    module = build("soft_threshold", channels=3)
    assert isinstance(module, Constrained)
    with torch.no_grad():
        module.threshold.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    module.project_()
    assert torch.equal(module.threshold.detach(), torch.tensor([0.0, 0.0, 0.5]))
    with pytest.raises(ConfigError, match="threshold must be >= 0"):
        build({"name": "soft_threshold", "threshold": -0.1})


STARTS = {
    "identity": lambda x: x,
    "relu": lambda x: x.clamp_min(0),
    "absolute": lambda x: x.abs(),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("init", STARTS)
def test_linear_spline_starts_as_a_function_with_its_kink_at_a_knot(init: str) -> None:
    module = build({"name": "linear_spline", "init": init, "knots": 31}, channels=4).double()
    x = 2 * torch.randn(5, 4, 6, dtype=torch.float64)  # beyond the knots, too
    torch.testing.assert_close(module(x), STARTS[init](x), rtol=1e-5, atol=1e-6)


def test_linear_spline_interpolates_its_values() -> None:
    module = build({"name": "linear_spline", "knots": 7, "limit": 3.0}).double()
    values = torch.randn(7, dtype=torch.float64)
    with torch.no_grad():
        module.values.copy_(values[None])
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    expected = np.interp(x.numpy(), np.linspace(-3, 3, 7), values.numpy())
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-12)
    slope = (values[-1] - values[-2]).item()
    beyond = module(torch.tensor([4.0], dtype=torch.float64))
    assert beyond.item() == pytest.approx(values[-1].item() + slope)


def test_linear_spline_gradients() -> None:
    module = build({"name": "linear_spline", "knots": 7}, channels=2, channel_dim=-1).double()
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    values = module.values.detach().clone().requires_grad_()

    def function(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"values": values}, (x,))

    assert torch.autograd.gradcheck(function, (x, values))


def test_linear_spline_keeps_nan_and_dtype() -> None:
    module = build("linear_spline")
    out = module(torch.tensor([float("nan"), 1.0], dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"knots": 1}, "knots must be >= 2"), ({"limit": 0}, "limit must be > 0"), ({"init": "tanh"}, "init must be one")],
)
def test_linear_spline_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"name": "linear_spline", **parameters})


@pytest.mark.parametrize("limit", [None, 0.9])
def test_prelu_has_one_slope_a_channel_within_its_limit(limit: float | None) -> None:
    module = PReLU(3, init=0.5, limit=limit)
    x = torch.tensor([[-2.0, -2.0, 4.0]])
    torch.testing.assert_close(module(x).detach(), torch.tensor([[-1.0, -1.0, 4.0]]))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([50.0, -50.0, 0.0]))
    slopes = [50.0, -50.0] if limit is None else [limit, -limit]
    torch.testing.assert_close(module(-torch.ones(1, 3)).detach(), -torch.tensor([[*slopes, 0.0]]))
    assert module.lipschitz_spec().constant == max(1.0, -slopes[1])
    with pytest.raises(ValueError, match="limit"):
        PReLU(limit=0.2)


def test_the_absolute_value() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(Absolute()(x), x.abs())
    assert Absolute().lipschitz_spec().constant == 1


WIDE = {"constraint": {"min": -3.0, "max": 3.0}, "learn_scale": True, "extrapolation": "constant"}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "linear_spline", **WIDE},
        {"name": "linear_spline", "groups": 1, "init": "absolute", "limit": (-2.0, 5.0)},
        {"name": "nonuniform_spline", **WIDE, "learn_knots": True, "share_knots": False, "knots": 7},
        {"name": "nonuniform_spline", "knots": [-1.0, -0.3, 0.2, 2.0], "projection": "step", "metric": "l2"},
    ],
    ids=lambda spec: spec["name"],
)
def test_splines_conform_whatever_their_parameters(spec: dict[str, Any]) -> None:
    check_component("activations", spec)
