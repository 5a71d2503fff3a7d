"""Variational reconstruction against scipy, and what it says of itself."""

import io

import pytest
import torch
from rich.console import Console
from scipy.optimize import minimize as scipy_minimize
from skimage.restoration import denoise_tv_chambolle

from morphlightning.errors import ConfigError, NonFiniteError, NotSupportedError, ShapeError
from morphlightning.inverse import PrintResiduals, TotalVariation, Variational, operators, total_variation
from morphlightning.inverse.total_variation import differences, differences_adjoint
from morphlightning.ridge import FilterBank, NoiseScaling, RidgeRegularizer
from morphlightning.splines import LinearSpline

EXACT = {"tolerance": 1e-8, "max_iterations": 3000}


def oracle(value, shape, bounds=(0, 1)):
    """The minimizer of a differentiable energy of one image, by L-BFGS-B."""

    def both(flat):
        x = torch.from_numpy(flat).view(1, 1, *shape).requires_grad_()
        energy = value(x).sum()
        (slope,) = torch.autograd.grad(energy, x)
        return energy.item(), slope.flatten().numpy()

    size = shape[0] * shape[1]
    found = scipy_minimize(both, [0.5] * size, jac=True, bounds=[bounds] * size, method="L-BFGS-B",
                           options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 300})  # fmt: skip
    return torch.from_numpy(found.x).view(1, 1, *shape)


def test_convex_agrees_with_scipy(blur, data, huber):
    solver = Variational(blur, huber, 0.05, **EXACT)
    found = solver(data)
    assert found.converged.all()
    other = oracle(lambda x: (blur(x) - data[:1]).square().sum() / 2 + 0.05 * huber.energy(x), (8, 10))
    torch.testing.assert_close(found.x[:1], other, rtol=0, atol=1e-5)
    assert "converges to a minimizer" in solver.guarantee
    assert (solver.energy(found.x, data) <= solver.energy(data, data)).all()


@pytest.mark.parametrize("make", [lambda: operators.FourierMask(torch.rand(8, 10) < 0.6), operators.Identity])
def test_other_data(make, images, huber):
    operator = make()
    y = operator(images)
    found = Variational(operator, huber, 1e-4, **EXACT)(y)
    slope = operator.adjoint(operator(found.x) - y) + 1e-4 * huber.grad(found.x)
    assert ((found.x - slope).clamp(0, 1) - found.x).abs().max() < 1e-6


def test_weakly_convex_denoising_has_one_minimizer_while_weight_times_rho_is_at_most_1(images, logarithmic):
    solver = Variational(operators.Identity(), logarithmic, 0.95, bounds=None, **EXACT)
    assert "converges to a minimizer" in solver.guarantee
    y = images + 0.1 * torch.randn(images.shape, dtype=images.dtype)
    torch.testing.assert_close(solver(y).x, solver(y, start=torch.rand_like(y)).x, rtol=0, atol=1e-6)


def test_weakly_convex_energies_descend_to_a_critical_point(blur, data, logarithmic):
    energies = []
    solver = Variational(
        blur, logarithmic, 0.5, callback=lambda k, x, r: energies.append(solver.energy(x, data)), **EXACT
    )
    assert "critical" in solver.guarantee
    found = solver(data)
    assert found.converged.all()
    assert (torch.stack(energies).diff(dim=0) <= 1e-14).all()
    slope = blur.adjoint(blur(found.x) - data) + 0.5 * logarithmic.grad(found.x)
    assert ((found.x - slope).clamp(0, 1) - found.x).abs().max() < 1e-7


def test_each_image_has_its_noise_level_and_is_on_its_own(blur, data, huber):
    solver = Variational(blur, huber, 0.05, tolerance=1e-6)
    levels = torch.tensor([0.3, 2.0])
    both = solver(data, sigma=levels)
    for i in range(2):
        alone = solver(data[i : i + 1], sigma=float(levels[i]))
        torch.testing.assert_close(alone.x[0], both.x[i], rtol=0, atol=1e-9)
        assert alone.iterations[0] == both.iterations[i]


def test_learned_ridge_regularizers_regularize(blur, data):
    torch.manual_seed(0)
    spline = LinearSpline(
        knots=11, limit=0.5, init=lambda t: 3 * t.clamp(-0.1, 0.1), constraint={"min": -1, "odd": True}
    )
    regularizer = RidgeRegularizer(FilterBank((1, 2, 4), 3), spline, NoiseScaling(4, (0.0, 0.2))).double()
    solver = Variational(blur, regularizer, 0.3, **EXACT)
    assert "converges to a minimizer" in solver.guarantee
    found = solver(data, sigma=0.1)
    slope = blur.normal(found.x) - blur.adjoint(data) + 0.3 * regularizer.grad(found.x, 0.1)
    assert ((found.x - slope).clamp(0, 1) - found.x).abs().max() < 1e-6
    torch.testing.assert_close(solver(data, sigma=torch.full((2,), 0.1)).x, found.x, rtol=0, atol=1e-7)


def test_residuals_are_printed(blur, data, huber):
    text = io.StringIO()
    found = Variational(blur, huber, 0.05, callback=PrintResiduals(5, Console(file=text)))(data)
    assert len(text.getvalue().splitlines()) == len(found.history) // 5
    assert "residual" in text.getvalue()


def test_differences_and_their_adjoint():
    x, u = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close((differences(x) * u).sum(), (x * differences_adjoint(u)).sum())
    assert total_variation(torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])) == 5 + 3 + 4


def test_total_variation_denoising_agrees_with_skimage(images):
    y = images + 0.1 * torch.randn(images.shape, dtype=images.dtype, generator=torch.Generator().manual_seed(2))
    solver = TotalVariation(operators.Identity(), 0.1, bounds=None, **EXACT)
    found = solver(y)
    other = torch.stack([torch.from_numpy(denoise_tv_chambolle(each[0].numpy(), 0.1, 1e-12, 3000))[None] for each in y])
    torch.testing.assert_close(found.x, other, rtol=0, atol=1e-4)
    assert (solver.energy(found.x, y) <= solver.energy(other, y) * (1 + 1e-5)).all()


def test_total_variation_deblurring_is_at_least_as_good_as_a_smooth_minimizer(blur, data):
    solver = TotalVariation(blur, 0.02, **EXACT)
    found = solver(data)
    smooth = oracle(
        lambda x: (blur(x) - data[:1]).square().sum() / 2
        + 0.02 * (differences(x).square().sum(2) + 1e-5).sqrt().sum(), (8, 10)
    )  # fmt: skip
    assert solver.energy(found.x, data)[0] <= solver.energy(smooth, data[:1])[0]
    torch.testing.assert_close(found.x[:1], smooth, rtol=0, atol=2e-2)
    assert "converges" in solver.guarantee


class Undeclared:
    def grad(self, x, sigma=None):
        return x

    def lipschitz(self):
        return 1.0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda a, r: Variational(a, Undeclared(), 1.0), NotSupportedError, "weak_convexity"),
        (lambda a, r: Variational(a, object(), 1.0, unchecked=True), NotSupportedError, "grad"),
        (lambda a, r: Variational(a, r, 0.0), ConfigError, "weight"),
        (lambda a, r: TotalVariation(a, -1.0), ConfigError, "weight"),
        (lambda a, r: Variational(a, r, 1.0, bounds=(1, 0)), ConfigError, "bounds"),
        (lambda a, r: Variational(a, r, 1.0)(torch.full((1, 1, 8, 10), 255.0)), ConfigError, r"\[0, 1\].*scale"),
        (
            lambda a, r: Variational(a, r, 1.0)(torch.ones(1, 1, 8, 10), start=torch.ones(1, 1, 8, 9)),
            ShapeError,
            "start",
        ),
        (lambda a, r: Variational(a, r, 1.0)(torch.full((1, 1, 8, 10), torch.nan)), NonFiniteError, "not finite"),
    ],
)
def test_what_cannot_work_is_refused(make, error, says, huber):
    with pytest.raises(error, match=says):
        make(operators.Identity(), huber)


def test_an_undeclared_regularizer_is_taken_for_convex_on_request(images):
    found = Variational(operators.Identity(), Undeclared(), 1.0, unchecked=True, **EXACT)(images)
    torch.testing.assert_close(found.x, images / 2, rtol=0, atol=1e-7)
