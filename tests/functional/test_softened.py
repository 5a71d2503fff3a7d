"""A block that softens every max-plus operator inside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import morphlightning.functional as mf
from morphlightning import layers
from morphlightning.errors import ConfigError, NotSupportedError

BETA = 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing", "adjoint_dilation", "adjoint_erosion"])
def test_dense_operators_become_their_soft_kin(name: str, dtype: torch.dtype) -> None:
    x, w = torch.randn(3, 2, 5, dtype=dtype), torch.randn(5, 5, dtype=dtype)
    w[0, 1] = -torch.inf
    soft = getattr(mf, f"soft_{name}")(x, w, BETA)
    with mf.softened(BETA):
        assert torch.equal(getattr(mf, name)(x, w), soft)
    assert not torch.allclose(getattr(mf, name)(x, w), soft)


@pytest.mark.parametrize("border", ["neutral", "reflect", "replicate", "circular", "constant"])
@pytest.mark.parametrize("name", ["dilation2d", "erosion2d"])
def test_windowed_operators_become_their_soft_kin(name: str, border: str) -> None:
    x, w = torch.randn(2, 4, 6, 7), torch.randn(6, 2, 3, 2)
    options = {"groups": 2, "stride": (2, 1), "border": border, "value": 0.7}
    soft = getattr(mf, f"soft_{name}")(x, w, BETA, **options)
    with mf.softened(BETA):
        assert torch.equal(getattr(mf, name)(x, w, **options), soft)


def test_gradient_is_that_of_log_sum_exp_whatever_the_rules() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    layer = layers.Dilation(6, 3, derivative="uniform", heuristic="count_normalized").double()
    with mf.softened(BETA):
        y = layer(x)
    gx, gw = torch.autograd.grad(y.square().sum(), (x, layer.weight))
    scores: Tensor = x[:, None] + layer.weight
    direct = (BETA * scores).logsumexp(-1) / BETA
    expected = torch.autograd.grad(direct.square().sum(), (x, layer.weight))
    torch.testing.assert_close((gx, gw), expected)


@pytest.mark.parametrize("name", ["dilation", "erosion"])
def test_gradient_only_keeps_the_values(name: str) -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    with mf.softened(BETA, gradient_only=True):
        y = getattr(mf, name)(x, w)
        assert torch.equal(getattr(mf, name)(x.detach(), w.detach()), y)
    assert torch.equal(y, getattr(mf, name)(x, w))
    gy = torch.randn_like(y)
    soft = getattr(mf, f"soft_{name}")(x, w, BETA)
    torch.testing.assert_close(torch.autograd.grad(y, (x, w), gy), torch.autograd.grad(soft, (x, w), gy))


def test_gradient_only_leaves_infinities() -> None:
    x, w = torch.zeros(1, 2, requires_grad=True), torch.zeros(2, 2)
    w[0] = -torch.inf
    with mf.softened(BETA, gradient_only=True):
        y = mf.dilation(x, w)
    assert y.tolist() == [[-torch.inf, 0.0]]
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gx, torch.full((1, 2), 0.5))


def test_tends_to_the_hard_network_and_leaves_it_as_it_was() -> None:
    network = nn.Sequential(
        layers.Dilation2d(1, 3, 3),
        layers.Opening2d(3),
        layers.MorphPool2d(3),
        nn.Flatten(),
        layers.SupOfErosions(27, 4),
    )
    x = torch.randn(2, 1, 6, 6)
    hard = network(x)
    with mf.softened(1e6):
        torch.testing.assert_close(network(x), hard, rtol=0, atol=1e-4)
    with mf.softened(1.0):
        assert (network(x) - hard).abs().max() > 0.1
        with mf.softened(1e6):
            torch.testing.assert_close(network(x), hard, rtol=0, atol=1e-4)
    assert torch.equal(network(x), hard)


def test_an_error_inside_ends_the_block() -> None:
    x, w = torch.randn(3, 5), torch.randn(4, 5)
    with pytest.raises(RuntimeError, match="mine"), mf.softened(BETA):
        raise RuntimeError("mine")
    assert torch.equal(mf.dilation(x, w), (x[:, None] + w).amax(-1))


@pytest.mark.parametrize(
    ("beta", "precision", "message"),
    [(0.0, "full", "beta"), (float("inf"), "full", "beta"), (1.0, "half", "precision")],
)
def test_wrong_arguments(beta: float, precision: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"softened: {message} must be"):
        mf.softened(beta, precision=precision)


def test_refuses_what_log_sum_exp_cannot_tell() -> None:
    with mf.softened(BETA), pytest.raises(NotSupportedError, match="where its maxima were taken"):
        layers.MorphPool2d(1, return_provenance=True)(torch.randn(1, 1, 4, 4))
    with mf.softened(BETA), pytest.raises(NotSupportedError, match="batch of weight matrices"):
        mf.dilation(torch.randn(2, 3), torch.randn(2, 4, 3))
