"""Signed layers against brute force, their softened kin, and mean shifts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.interfaces import Hardenable
from morphlightning.layers import (
    Dilation,
    Dilation2d,
    Erosion2d,
    MeanShift,
    SignedDilation,
    SignedErosion,
    SoftDilation,
    SoftDilation2d,
    SoftErosion,
    SoftErosion2d,
    SoftSignedDilation,
    SoftSignedErosion,
    initialize,
)
from morphlightning.lipschitz import certify


def layer(kind=SignedDilation, n=5, m=4, dtype=torch.float64, **options):
    return kind(n, m, initializer={"name": "uniform", "low": -1.0, "high": 1.0}, **options).to(dtype)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_signed_layers_are_maxima_and_minima_of_both_signs(n, m, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, n, dtype=torch.float64)
    up, down = layer(SignedDilation, n, m), layer(SignedErosion, n, m)
    brute = torch.maximum(x[:, None] + up.a, up.b - x[:, None]).amax(-1)
    assert torch.equal(up(x), brute)
    brute = torch.minimum(x[:, None] - down.a, -x[:, None] - down.b).amin(-1)
    assert torch.equal(down(x), brute)


def test_the_erosion_is_minus_the_dilation_with_both_weights_exchanged() -> None:
    up, down = layer(SignedDilation), layer(SignedErosion)
    with torch.no_grad():
        down.weight.copy_(torch.cat([up.b, up.a], 1))
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(down(x), -up(x))


def test_missing_weights_never_win_and_make_no_nan() -> None:
    mask = torch.ones(4, 10, dtype=torch.bool)
    mask[:, 5:] = False
    signed, plain = layer(mask=mask), layer(Dilation)
    with torch.no_grad():
        plain.weight.copy_(signed.weight[:, :5])
    x = torch.randn(3, 5, dtype=torch.float64)
    assert (signed.b == -math.inf).all()
    assert torch.equal(signed(x), plain(x))
    y = signed(x.requires_grad_())
    y.sum().backward()
    assert (signed.weight.grad[:, 5:] == 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [SoftSignedDilation, SoftSignedErosion])
@pytest.mark.parametrize("beta", [0.1, 1.0, 50.0, 1e6])
def test_softened_ones_are_log_sum_exp_at_any_temperature(kind, beta) -> None:
    torch.manual_seed(0)
    soft = layer(kind, beta=beta)
    x = 3 * torch.randn(6, 5, dtype=torch.float64)
    sign = 1 if kind is SoftSignedDilation else -1
    scores = beta * (torch.cat([sign * x, -sign * x], -1)[:, None] + soft.weight)
    torch.testing.assert_close(soft(x), sign * torch.logsumexp(scores, -1) / beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype) -> None:
    x = torch.randn(3, 5, dtype=dtype)
    for kind in (SignedDilation, SignedErosion, SoftSignedDilation, SoftSignedErosion):
        assert layer(kind, dtype=dtype)(x).dtype == dtype


def test_gradients() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for kind in (SignedDilation, SignedErosion, SoftSignedDilation, SoftSignedErosion):
        assert torch.autograd.gradcheck(layer(kind), x)


@pytest.mark.parametrize("kind", [SoftDilation, SoftErosion, SoftSignedDilation, SoftSignedErosion])
def test_hardening_copies_weights_and_mask(kind) -> None:
    mask = torch.rand(4, 10 if "Signed" in kind.__name__ else 5) < 0.7
    mask[:, 0] = True
    soft = layer(kind, mask=mask, beta=3.0).eval()
    hard = soft.harden()
    assert isinstance(soft, Hardenable)
    assert type(hard).__name__ == kind.__name__.removeprefix("Soft")
    assert not hard.training
    assert torch.equal(hard.effective_weight, soft.effective_weight)
    assert hard.weight is not soft.weight
    x = torch.randn(3, 5, dtype=torch.float64)
    soft.set_beta(1e5)
    torch.testing.assert_close(hard(x), soft(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"out_channels": 4, "stride": 2, "border": "reflect"}])
def test_hardening_of_windows_keeps_how_they_move(options) -> None:
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    for kind, hard in ((SoftDilation2d, Dilation2d), (SoftErosion2d, Erosion2d)):
        soft = kind(2, kernel_size=3, beta=1e5, **options).double()
        assert type(soft.harden()) is hard
        torch.testing.assert_close(soft.harden()(x), soft(x), rtol=0, atol=1e-4)


def test_initializers_that_learn_from_data_see_both_signs() -> None:
    torch.manual_seed(0)
    teacher = layer(dtype=torch.float32)
    x = torch.rand(400, 5)
    y = teacher(x).detach()
    student = SignedDilation(5, 4, initializer="residual")
    initialize(student, [(x, y)])
    assert torch.allclose(student(x), y, atol=1e-6)


@pytest.mark.parametrize("kind", [SignedDilation, SignedErosion, SoftSignedDilation, SoftSignedErosion])
def test_wrong_shapes_name_the_size(kind) -> None:
    with pytest.raises(ShapeError, match=r"in_features = 5"):
        layer(kind)(torch.zeros(3, 10, dtype=torch.float64))


def test_all_are_certified() -> None:
    network = torch.nn.Sequential(layer(n=5), MeanShift(4), layer(SoftSignedErosion, 4, 2)).eval()
    assert certify(network, "linf").constant == 1


# ---------------------------------------------------------------------------------------------------------- mean shift
def test_the_mean_is_that_of_the_batch_in_training_and_a_running_one_after() -> None:
    x = torch.randn(50, 3, dtype=torch.float64) + 2
    shift = MeanShift(3, momentum=0.25).double()
    torch.testing.assert_close(shift(x).mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(shift.mean, 0.25 * x.mean(0))
    shift.eval()
    assert torch.equal(shift(x), x - shift.mean)


def test_without_momentum_the_mean_is_that_of_all_batches_since_the_reset() -> None:
    x = torch.randn(60, 3, dtype=torch.float64)
    shift = MeanShift(3, momentum=None).double()
    shift(x + 100)
    shift.reset()
    for part in x.split(20):
        shift(part)
    torch.testing.assert_close(shift.mean, x.mean(0))


def test_gradients_flow_through_the_mean() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: MeanShift(3).double()(x), x)
    (gradient,) = torch.autograd.grad(MeanShift(3).double()(x).sum(), x)
    torch.testing.assert_close(gradient, torch.zeros_like(x))


def test_what_a_mean_shift_refuses() -> None:
    with pytest.raises(ShapeError, match="last axis must be 3"):
        MeanShift(3)(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="momentum"):
        MeanShift(3, momentum=0.0)
