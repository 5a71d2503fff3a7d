"""Every bijection: its inverse, its log-determinant against the Jacobian, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError, DtypeError, NotSupportedError, ShapeError
from morphlightning.flows import (
    Composition,
    Conditioner,
    Coupling,
    ElementwiseSpline,
    Flow,
    Logit,
    MonotoneSpline,
    Normalization,
)
from morphlightning.flows import coupling_flow as flow_of_couplings
from morphlightning.splines import LinearSpline, NonuniformSpline

from .conftest import MAKERS, disturbed, make, points

names = pytest.mark.parametrize("name", MAKERS)


@names
@pytest.mark.parametrize("dim", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(name: str, dim: int) -> None:
    bijection, x = make(name, dim), points(name, 9, dim)
    _, log_det = bijection(x)
    assert log_det.shape == (9,)
    for point, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: bijection(p[None])[0][0], point)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, found, rtol=0, atol=1e-9)


@names
def test_round_trip_in_float64(name: str) -> None:
    bijection, x = make(name, 3), points(name, 200, 3)
    with torch.no_grad():
        z, _ = bijection(x)
        assert (bijection.inverse(z) - x).abs().max() < 1e-10


@names
def test_round_trip_in_float32(name: str) -> None:
    flow, x = Flow(make(name, 3, torch.float32, 0.1)), points(name, 200, 3, torch.float32)
    with torch.no_grad():
        z = flow.transform(x)
        back = flow.inverse(z)
    assert z.dtype == back.dtype == torch.float32
    assert ((back - x).abs() / (1 + x.abs())).max() < 1e-6


@pytest.mark.parametrize("kind", ["quadratic", "linear", "affine"])
def test_a_flow_in_float32_is_inverted_exactly_by_points_in_float64(kind: Any) -> None:
    flow = Flow(disturbed(flow_of_couplings(4, 6, (16,), MonotoneSpline(kind)), 0.1))
    x = points("", 500, 4)
    with torch.no_grad():
        assert (flow.inverse(flow.transform(x)) - x).abs().max() < 1e-10


@names
def test_gradients_of_the_log_determinant(name: str) -> None:
    """Smoothness is not asked of it, only that it is right where it is smooth; parameters of all get a gradient."""
    bijection, x = make(name, 2), points(name, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bijection(x), x, atol=1e-5)
    sum(part.sum() for part in bijection(x)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bijection.parameters())


def test_nan_stays_where_it_is() -> None:
    bijection, x = make("coupling_flow", 2), points("", 3, 2)
    x[1, 0] = math.nan
    z, log_det = bijection(x)
    assert z.isnan().any(1).tolist() == log_det.isnan().tolist() == [False, True, False]


@names
def test_bfloat16_and_no_points(name: str) -> None:
    bijection = make(name, 2, torch.float32)
    z, log_det = bijection(points(name, 3, 2, torch.bfloat16))
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    z, log_det = bijection(torch.zeros(0, 2))
    assert (z.shape, log_det.shape) == ((0, 2), (0,))
    assert bijection.inverse(z).shape == (0, 2)


# ------------------------------------------------------------------------------------------------------- the starts
def test_couplings_start_as_the_identity() -> None:
    bijection, x = flow_of_couplings(5, 4), points("", 20, 5, torch.float32)
    z, log_det = bijection(x)
    torch.testing.assert_close(z, x, atol=1e-5, rtol=0)
    assert log_det.abs().max() < 1e-5


def test_normalizations_start_from_points_once() -> None:
    flow, x = flow_of_couplings(3, 2), 5 + 3 * points("", 500, 3, torch.float32)
    assert flow.awaits_data
    flow.initialize(x)
    assert not flow.awaits_data
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.initialize(x + 7)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    other = flow_of_couplings(3, 2)
    other.load_state_dict(before)
    assert not other.awaits_data


def test_parts_of_the_points_together_start_as_all_would() -> None:
    x = points("", 60, 3)
    whole, shares = Normalization(3).double(), [x[::2], x[1::2]]
    whole.initialize(x)
    means = [torch.stack([share.mean(0) for share in shares]).mean(0)]
    means.append(torch.stack([(share - means[0]).square().mean(0) for share in shares]).mean(0))
    for share in shares:
        answers, layer = iter(means), Normalization(3).double()
        layer.initialize(share, lambda _, answers=answers: next(answers))
        torch.testing.assert_close(layer.log_scale, whole.log_scale)
        torch.testing.assert_close(layer.mean, whole.mean)


def test_points_that_never_change_are_no_trouble() -> None:
    layer = Normalization(2)
    layer.initialize(torch.ones(5, 2))
    z, log_det = layer(torch.ones(5, 2))
    assert z.isfinite().all()
    assert log_det.isfinite().all()


# --------------------------------------------------------------------------------------------------------- refusals
@names
def test_points_of_another_size(name: str) -> None:
    bijection = make(name, 3)
    for x in (torch.zeros(4, 2), torch.zeros(4, 4), torch.zeros(3), torch.zeros(1, 3, 1)):
        for call in (bijection, bijection.inverse):
            with pytest.raises(ShapeError, match=r"expected \(N, 3\)"):
                call(x.double())
    with pytest.raises(DtypeError):
        bijection(torch.zeros(2, 3, dtype=torch.int64))


def test_elementwise_splines_that_have_no_inverse() -> None:
    for spline in (
        LinearSpline(2),
        LinearSpline(2, constraint="monotone"),
        LinearSpline(2, constraint={"min": -1.0, "max": 1.0}),
    ):
        with pytest.raises(NotSupportedError, match="no inverse"):
            ElementwiseSpline(2, spline)
    constraint = {"min": 0.1}
    for spline in (LinearSpline(3, constraint=constraint), LinearSpline(2, 2, constraint=constraint)):
        with pytest.raises(ConfigError, match="channels"):
            ElementwiseSpline(2, spline)
    outside = ElementwiseSpline(2, LinearSpline(2, constraint=constraint, projection="step"))
    outside.spline.values.data.zero_()
    with pytest.raises(NotSupportedError, match="monotone"):
        outside.inverse(torch.zeros(1, 2))


@pytest.mark.parametrize("channels", [None, 3])
def test_elementwise_splines_of_either_kind(channels: int | None) -> None:
    for kind in (LinearSpline, NonuniformSpline):
        spline = kind(channels, init="identity", constraint={"min": 0.2, "max": 5.0}, learn_scale=True)
        bijection = disturbed(ElementwiseSpline(3, spline), 0.3)
        x = points("", 50, 3)  # in float64, the spline in float32
        z, log_det = bijection(x)
        assert (bijection.inverse(z) - x).abs().max() < 1e-10
        assert log_det.abs().max() <= 3 * math.log(5) * (1 + 1e-5)


@pytest.mark.parametrize("kept", [[], [0, 1, 2], [0, 0], [-1], [3]])
def test_couplings_keep_some_positions(kept: list[int]) -> None:
    with pytest.raises(ConfigError, match="positions 0 to 2"):
        Coupling(3, kept, nn.Linear(1, 1), MonotoneSpline())


def test_a_conditioner_of_another_size() -> None:
    with pytest.raises(ShapeError, match="the conditioner gives"):
        Coupling(2, [0], nn.Linear(1, 3), MonotoneSpline())(torch.zeros(4, 2))


def test_settings_out_of_range() -> None:
    for wrong in (
        lambda: Composition(),
        lambda: Composition(Normalization(2), Normalization(3)),
        lambda: Normalization(0),
        lambda: Logit(2, 0.5),
        lambda: flow_of_couplings(1),
        lambda: flow_of_couplings(2, 0),
        lambda: Conditioner(2, 2, (0,)),
        lambda: Flow(Normalization(2)).sample(0),
    ):
        with pytest.raises(ConfigError):
            wrong()
