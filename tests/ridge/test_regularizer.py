from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError, TrainingWarning
from morphlightning.ridge import FilterBank, NoiseScaling, RidgeRegularizer
from morphlightning.ridge import regularizer as regularizer_module
from morphlightning.splines import LinearSpline


def hessian(regularizer: RidgeRegularizer, x: Tensor, sigma: float) -> Tensor:
    def grad(flat: Tensor) -> Tensor:
        return regularizer.grad(flat.view_as(x), sigma).flatten()

    return torch.autograd.functional.jacobian(grad, x.flatten())  # type: ignore[no-untyped-call, no-any-return]


def test_grad_is_the_gradient_of_the_energy(regularizer: RidgeRegularizer, images: Tensor, sigma: Tensor) -> None:
    x = images.requires_grad_()
    (expected,) = torch.autograd.grad(regularizer.energy(x, sigma).sum(), x)
    assert torch.allclose(regularizer.grad(x, sigma), expected, atol=1e-15)


def test_energy_is_the_sum_of_scaled_potentials(regularizer: RidgeRegularizer, images: Tensor) -> None:
    assert regularizer.scaling is not None
    alpha = regularizer.scaling(torch.tensor([0.05], dtype=torch.float64))[0]
    features = regularizer.filters()(images)
    expected = sum(
        regularizer.activation.potential(features[:, c] * alpha[c]).sum((1, 2)) / alpha[c] ** 2 for c in range(6)
    )
    assert torch.allclose(regularizer.energy(images, 0.05), expected)
    assert regularizer.energy(torch.zeros_like(images), 0.05).abs().max() == 0


def test_hessian_products_are_those_of_autograd(regularizer: RidgeRegularizer, images: Tensor, sigma: Tensor) -> None:
    ridge, v = regularizer(sigma), torch.randn_like(images)
    x = images.requires_grad_()
    (expected,) = torch.autograd.grad((regularizer.grad(x, sigma) * v).sum(), x)
    assert torch.allclose(ridge.hessian_product(ridge.curvature(images), v), expected, atol=1e-14)


@pytest.mark.parametrize("level", [5 / 255, 25 / 255])
def test_curvature_lies_in_the_certified_bounds(regularizer: RidgeRegularizer, level: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.001, 0.05, 0.5):
        x = scale * torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=generator)
        eigenvalues = torch.linalg.eigvalsh(hessian(regularizer, x, level))
        assert eigenvalues.min() >= -regularizer.weak_convexity() - 1e-12
        assert eigenvalues.max() <= regularizer.lipschitz() + 1e-12
    assert regularizer.certified
    assert math.isclose(regularizer.weak_convexity(), 1.0, rel_tol=1e-6)


def test_one_scale_folds_into_the_filters(regularizer: RidgeRegularizer, images: Tensor) -> None:
    ridge = regularizer(0.05)
    assert torch.allclose(ridge.folded().grad(images), ridge.grad(images), atol=1e-14)
    assert torch.allclose(regularizer.gradient_at(0.05)(images), ridge.grad(images), atol=1e-14)
    assert not regularizer.gradient_at(0.05)(images).requires_grad
    with pytest.raises(ConfigError, match="several noise levels"):
        regularizer(torch.tensor([0.05, 0.06])).folded()


def test_without_scales_the_noise_level_plays_no_role(regularizer: RidgeRegularizer, images: Tensor) -> None:
    plain = RidgeRegularizer(regularizer.filters, regularizer.activation)
    assert torch.equal(plain.grad(images), plain.grad(images, 0.3))
    assert torch.allclose(plain().folded().grad(images), plain.grad(images), atol=1e-15)


def test_wrong_inputs_are_refused(regularizer: RidgeRegularizer, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="ReLU is no spline"):
        RidgeRegularizer(FilterBank((1, 4), 3), nn.ReLU())
    with pytest.raises(ConfigError, match="none was given"):
        regularizer.grad(images)
    with pytest.raises(ShapeError, match=r"expected \(N, 1, H, W\)"):
        regularizer.energy(images[:, 0], 0.05)


def test_scales_follow_the_noise_level_and_warn_outside() -> None:
    scaling = NoiseScaling(2, (0.0, 30 / 255), knots=4).eval()
    with torch.no_grad():
        scaling.values[1] = torch.tensor([5.0, 4.0, 3.0, 2.0])
    expected = torch.tensor([math.exp(5), math.exp(3.5)]) / (15 + 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(scaling(torch.tensor([15 / 255]))[0], expected)
    with pytest.warns(TrainingWarning, match=r"0\.2 lies outside the trained range \[0, 0\.1176\]"):
        scaling(torch.tensor([0.05, 0.2]))


def test_a_single_level_is_one_number_a_feature() -> None:
    scaling = NoiseScaling(3, 25 / 255)
    assert scaling.values.shape == (3, 1)
    assert torch.allclose(scaling(torch.tensor([25 / 255])), torch.full((1, 3), math.exp(5) / 25), rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, -0.1, (0.2, 0.1), (-0.1, 0.1)])
def test_impossible_noise_levels_are_refused(noise: float | tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="NoiseScaling"):
        NoiseScaling(2, noise)


@pytest.mark.parametrize("height", [20, 24, 44])
def test_strip_by_strip_the_gradient_is_the_same(monkeypatch: pytest.MonkeyPatch, height: int) -> None:
    torch.manual_seed(0)
    spline = LinearSpline(5, 1, knots=21, limit=0.5, init=lambda t: t.clamp(-0.2, 0.3)).double()
    ridge = RidgeRegularizer(FilterBank((1, 5), 5).double(), spline)()
    x = torch.rand(2, 1, height, 12, dtype=torch.float64)
    expected = ridge.grad(x)
    for numbers in (1, 2 * 5 * 12 * 8, 2**20):
        monkeypatch.setattr(regularizer_module, "FEATURES_AT_ONCE", numbers)
        assert torch.allclose(ridge.blocked(height, 12).folded().grad(x), expected, atol=1e-14)
