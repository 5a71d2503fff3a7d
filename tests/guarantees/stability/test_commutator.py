"""Dilation and deformation commute up to the bound that is derived in docs/guarantees.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from morphlightning.errors import ConfigError
from morphlightning.functional import dilation2d, erosion2d
from morphlightning.guarantees.stability import Deformation, DisplacementField, affine, commutator_bound, deform

DOUBLE = torch.float64


def lipschitz(image: torch.Tensor) -> float:
    """Of the bilinear image, for the sup norm of points: the largest |dX/dx| + |dX/dy| at a corner of a cell."""
    x, y = image.diff(dim=-1).abs(), image.diff(dim=-2).abs()
    corners = [a + b for a in (x[..., :-1, :], x[..., 1:, :]) for b in (y[..., :-1], y[..., 1:])]
    return float(torch.stack(corners).max())


@pytest.mark.parametrize("axis", [0, 1])
def test_equality_for_a_ramp_and_a_stretching(axis: int) -> None:
    """GEO-4: X = a u and tau = -kappa u: the commutator is r kappa Lip(X), the bound."""
    size, radius, kappa, slope = (27, 31), 2, 0.2, 3.0
    y, x = torch.meshgrid(*(torch.arange(n, dtype=DOUBLE) for n in size), indexing="ij")
    ramp = slope * (x, y)[axis].expand(1, 1, *size)
    matrix = torch.zeros(2, 2, dtype=DOUBLE)
    matrix[axis, axis] = -kappa
    field = affine(matrix, size)
    bound = commutator_bound(ramp, radius, field)
    dilated = dilation2d(deform(ramp, field), 2 * radius + 1)
    inner = (..., slice(7, -7), slice(7, -7))
    expected = torch.full_like(dilated[inner], radius * kappa * slope)
    torch.testing.assert_close((dilated - bound.middle)[inner], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(bound.upper[inner], dilated[inner], atol=1e-12, rtol=0)
    assert bound.gradient.item() == pytest.approx(kappa, abs=1e-12)


@given(
    image=arrays("float64", (7, 9), elements=st.floats(-1, 1)),
    seed=st.integers(0, 10**6),
    gradient=st.floats(0.01, 0.7),
    radius=st.integers(0, 3),
    kind=st.sampled_from(["max_entropy", "sine", "affine", "elastic"]),
    op=st.sampled_from(["dilation", "erosion"]),
)
@settings(max_examples=40, deadline=None)
def test_no_counterexample(image, seed: int, gradient: float, radius: int, kind: str, op: str) -> None:
    """GEO-4: the sandwich holds for the windows of layers, whatever the image and the field."""
    images = torch.from_numpy(image)[None, None]
    field = DisplacementField(kind, gradient=gradient, sigma=2.0).draw((7, 9), 1, seed, dtype=DOUBLE)
    bound = commutator_bound(images if op == "dilation" else -images, radius, field)
    if op == "dilation":
        seen = dilation2d(deform(images, field), 2 * radius + 1)
    else:
        seen = -erosion2d(deform(images, field), 2 * radius + 1)
    steepness, kappa = lipschitz(images), bound.gradient.item()
    assert (seen <= bound.upper + 1e-9).all()
    inner = (..., slice(radius, 7 - radius), slice(radius, 9 - radius))
    assert (seen[inner] >= bound.lower[inner] - (1 + kappa) / 2 * steepness - 1e-9).all()
    assert (bound.lower <= bound.middle).all()
    assert (bound.upper - bound.middle).max() <= radius * kappa * steepness + 1e-9
    assert (bound.middle - bound.lower).max() <= radius * kappa * steepness + 1e-9


def test_the_maximum_over_a_square_is_exact() -> None:
    """Against a fine grid of points of the square, for the upper bound of a random image."""
    torch.manual_seed(0)
    images = torch.randn(1, 1, 8, 8, dtype=DOUBLE)
    field = DisplacementField("sine", gradient=0.3).draw((8, 8), 1, dtype=DOUBLE)
    bound = commutator_bound(images, 1, field)
    reach = 1 + bound.gradient.item()
    best = torch.full((1, 1, 8, 8), -torch.inf, dtype=DOUBLE)
    for dx in torch.linspace(-reach, reach, 25, dtype=DOUBLE).tolist():
        for dy in torch.linspace(-reach, reach, 25, dtype=DOUBLE).tolist():
            offset = torch.tensor([dx, dy], dtype=DOUBLE).view(1, 2, 1, 1)
            best = torch.maximum(best, deform(images, Deformation(field.tau + offset)))
    assert (best <= bound.upper + 1e-12).all()
    assert (bound.upper - best).max() < 0.4
    assert (bound.upper - best).median() < 0.1


def test_without_a_gradient_both_commute() -> None:
    images = torch.rand(2, 1, 6, 6, dtype=DOUBLE)
    shift = Deformation(torch.tensor([2.0, -1.0], dtype=DOUBLE).view(1, 2, 1, 1).expand(1, 2, 6, 6))
    bound = commutator_bound(images, 1, shift)
    assert torch.equal(bound.lower, bound.upper)
    assert torch.equal(bound.middle[..., 1:-2, 3:-1], dilation2d(deform(images, shift), 3)[..., 1:-2, 3:-1])


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="radius=-1"):
        commutator_bound(torch.zeros(1, 1, 4, 4), -1, Deformation(torch.zeros(1, 2, 4, 4)))
    turn = affine(torch.tensor([[0.6, 0.6], [-0.6, 0.6]]), (4, 4))
    with pytest.raises(ConfigError, match=r"1\.2 in the sup norm"):
        commutator_bound(torch.zeros(1, 1, 4, 4), 1, turn)
