import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.lipschitz.norms import composed, convolution_norm, dense_norm, gram_norm, lanczos_norm

CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(kernels: list[Tensor], size: int, padding: str = "full", groups: int = 1, stride: int = 1) -> Tensor:
    """The matrix of convolutions one after another on images of this size, by the images of unit vectors."""
    shape = (kernels[0].shape[1] * groups, *[size] * (kernels[0].ndim - 2))
    x = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    for kernel in kernels:
        pads = [k - 1 if padding == "full" else k // 2 for k in kernel.shape[2:]]
        x = CONV[kernel.ndim](x, kernel, padding=pads, groups=groups, stride=stride)
    return x.flatten(1).mT


def largest(a: Tensor) -> float:
    return float(np.linalg.svd(a.numpy(), compute_uv=False)[0])


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dense_norm_is_the_largest_singular_value_and_not_below(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = randn(*shape).to(dtype)
    exact = np.linalg.svd(weight.double().numpy(), compute_uv=False)[..., 0]
    norm = dense_norm(weight).numpy()
    assert norm.dtype == weight.numpy().dtype
    assert (norm >= exact).all()
    assert norm == pytest.approx(exact, rel=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_weights_have_a_norm_and_a_finite_gradient(scale: float) -> None:
    for shape, norm in (((5, 3), dense_norm), ((4, 1, 3, 3), convolution_norm), ((4, 2, 3, 3), convolution_norm)):
        weight = (torch.randn(shape) * scale).requires_grad_()
        value = norm(weight)
        value.backward()
        assert (value.item() > 0) == (scale > 0)
        assert weight.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    weight = randn(4, 2, 3, 3).bfloat16()
    assert convolution_norm(weight).dtype == torch.float32
    assert float(convolution_norm(weight)) == pytest.approx(float(convolution_norm(weight.double())), rel=1e-4)


STACKS = {
    "1-d": ([(3, 1, 4)], 12),
    "2-d": ([(4, 1, 3, 3)], 9),
    "several inputs": ([(2, 5, 3, 3)], 6),
    "stack": ([(2, 1, 3, 3), (3, 2, 3, 2), (4, 3, 2, 3)], 9),
    "one tap": ([(3, 4, 1, 1)], 4),
    "3-d": ([(2, 1, 2, 3, 2)], 5),
}


@pytest.mark.parametrize(("shapes", "size"), STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("slack", [0.01, 0.2])
def test_the_convolution_norm_lies_above_the_matrix_and_within_the_slack_of_the_symbol(shapes, size, slack) -> None:
    kernels = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    bound, fine = float(convolution_norm(kernels, slack=slack)), float(convolution_norm(kernels, slack=1e-3))
    operator = largest(matrix(kernels, size))
    assert operator <= fine * (1 + 1e-12)
    assert fine / 1.001 <= bound <= fine * (1 + slack)
    assert operator > 0.8 * fine  # else the bound would be one of something else


def test_more_than_the_slack_is_not_lost_on_a_flat_symbol() -> None:
    """A shift is an isometry: its symbol has modulus one everywhere."""
    shift = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    shift[0, 0, 4, 1] = 1
    assert 1 <= float(convolution_norm(shift, slack=0.05)) <= 1.05


@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("points", [6, 7, 16])
def test_between_grid_points_a_nonnegative_trigonometric_polynomial_is_bounded(degree: int, points: int) -> None:
    """The factor that norms.py derives; the second case attains it: nothing smaller would do."""
    fine = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    factor = math.cos(math.pi * degree / (2 * points)) ** -2
    for seed in range(100):
        polynomial = torch.fft.fft(
            torch.randn(degree + 1, generator=torch.Generator().manual_seed(seed)).double(), n=points
        )
        coefficients = torch.randn(degree + 1, generator=torch.Generator().manual_seed(seed)).double()
        dense = torch.exp(-1j * fine[:, None] * torch.arange(degree + 1)) @ coefficients.to(torch.complex128)
        assert float(dense.abs().square().max()) <= float(polynomial.abs().square().max()) * factor * (1 + 1e-12)
    grid = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    if points % degree == 0 and points > degree:
        worst = 1 + torch.cos(degree * (grid - math.pi / points))
        assert 2 / float(worst.max()) == pytest.approx(factor)


def test_groups_are_the_largest_of_their_parts() -> None:
    kernels = [randn(6, 2, 3, 3), randn(9, 2, 3, 3, seed=1)]
    whole = convolution_norm(kernels, groups=3, slack=0.01)
    parts = [
        convolution_norm([kernels[0][2 * g : 2 * g + 2], kernels[1][3 * g : 3 * g + 3]], slack=0.01) for g in range(3)
    ]
    assert float(whole) == pytest.approx(float(max(parts)), rel=1e-9)
    assert largest(matrix(kernels, 4, groups=3)) <= float(whole)


@pytest.mark.parametrize("inputs", [1, 2])
def test_weights_of_channels_bound_the_hessian_of_ridge_functions(inputs: int) -> None:
    kernels, s = [randn(3, inputs, 3, 3), randn(5, 3, 3, 3, seed=1)], randn(5, seed=2).abs()
    s[2] = 0
    w = matrix(kernels, 10)
    slopes = s.repeat_interleave(len(w) // 5)
    hessian = largest(w.mT @ (slopes[:, None] * w))
    bound = float(gram_norm(kernels, s, slack=0.02))
    assert hessian <= bound
    assert bound <= 1.4 * hessian
    assert float(gram_norm(kernels, torch.ones(5), slack=0.02)) == pytest.approx(float(gram_norm(kernels, slack=0.02)))


def test_composition_is_one_convolution() -> None:
    kernels = [randn(4, 1, 3, 3), randn(6, 2, 2, 3, seed=1)]
    x, pads = randn(1, 2, 5, 5, seed=2), [(2, 2), (1, 2)]
    one = F.conv2d(F.conv2d(x, kernels[0], padding=pads[0], groups=2), kernels[1], padding=pads[1], groups=2)
    torch.testing.assert_close(F.conv2d(x, composed(kernels, 2), padding=(3, 4), groups=2), one)


def test_zero_padding_breaks_the_symbol_of_a_stack_but_not_the_product_of_layers() -> None:
    """The composed symbol bounds stacks with full padding alone: zeros around intermediate images add to the norm."""
    kernels = [torch.tensor([[taps]]).double() for taps in ([-1, 1, -1], [1, 0, -1], [1, 1, 1])]
    symbol = float(convolution_norm(kernels, slack=1e-3))
    padded = largest(matrix(kernels, 8, padding="same"))
    assert padded > 1.49 * symbol
    assert largest(matrix(kernels, 8)) <= symbol
    assert padded <= math.prod(float(convolution_norm(kernel)) for kernel in kernels)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_layers_with_zero_padding_and_strides_stay_below_their_norm(
    seed: int, out: int, inputs: int, stride: int
) -> None:
    kernel = randn(out, inputs, 3, 3, seed=seed)
    assert largest(matrix([kernel], 5, padding="same", stride=stride)) <= float(convolution_norm(kernel))


def test_gradients_are_those_of_the_maximum() -> None:
    first, second, s = randn(3, 1, 2, 2), randn(4, 3, 2, 3, seed=1), randn(4, seed=2).abs()
    several, weight = randn(3, 4, 2, 2), randn(3, 5)
    for function, arguments in (
        (lambda a, b, c: gram_norm([a, b], c, slack=0.2), (first, second, s)),
        (lambda a: convolution_norm(a, slack=0.2), (several,)),
        (dense_norm, (weight,)),
    ):
        leaves = [argument.clone().requires_grad_() for argument in arguments]
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


def test_lanczos_comes_from_below() -> None:
    weight = randn(30, 40)
    estimate = float(lanczos_norm(lambda v: weight.mT @ (weight @ v), (40,), weight)) ** 0.5
    assert 0.98 * largest(weight) <= estimate <= largest(weight) * (1 + 1e-12)


def test_what_does_not_fit_is_refused() -> None:
    kernel = randn(4, 1, 3, 3)
    with pytest.raises(ShapeError, match="cannot follow"):
        convolution_norm([kernel, randn(2, 3, 3, 3)])
    with pytest.raises(ShapeError, match="taps"):
        convolution_norm(randn(3, 3))
    with pytest.raises(ShapeError, match="no kernels"):
        convolution_norm([])
    with pytest.raises(ShapeError, match="one for each output"):
        gram_norm(kernel, torch.ones(3))
    with pytest.raises(ConfigError, match="slack"):
        convolution_norm(kernel, slack=0)
