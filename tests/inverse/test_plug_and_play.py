"""Plug-and-play against closed forms; denoisers without a guarantee are refused."""

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.inverse import Averaged, GradientStep, PnPADMM, PnPForwardBackward, averagedness, operators
from morphlightning.lipschitz import SpectralConv2d

EXACT = {"tolerance": 1e-8, "max_iterations": 2000}


class Towards(nn.Module):
    """Prox of c/2 ||x - 1/2||^2."""

    def forward(self, x):
        return (x + 0.25) / 1.5

    def averagedness(self):
        return 0.5


class Rotation(nn.Module):
    """An isometry followed by absolute values, about 1/2: 1-Lipschitz, not firmly non-expansive."""

    def forward(self, x):
        return (x.roll(1, -1) - 0.5).abs() * 0.9 + 0.3

    def lipschitz_spec(self):
        return LipschitzSpec(1.0)


class Unknown(nn.Module):
    """Nothing is known about it."""

    def forward(self, x):
        return x.clamp_min(0)


class Declares(nn.Identity):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def lipschitz_spec(self):
        return self.spec


def test_both_find_the_fixed_point_of_a_linear_denoiser(blur, data):
    step = 0.8
    dense = blur(torch.eye(80, dtype=torch.float64).view(80, 1, 8, 10)).flatten(1).T
    normal, back = dense.T @ dense, blur.adjoint(data).flatten(1)
    expected = torch.linalg.solve(1.5 * torch.eye(80) - torch.eye(80) + step * normal, (step * back + 0.25).T).T
    one = PnPForwardBackward(blur, Towards(), step, **EXACT)(data)
    other = PnPADMM(blur, Towards(), 1 / step, **EXACT)(data)
    for found in (one, other):
        assert found.converged.all()
        torch.testing.assert_close(found.x.flatten(1), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("operator", ["blur", "beam"])
def test_both_find_the_same_fixed_point(operator, blur, data, images):
    if operator == "beam":
        blur = operators.ParallelBeam((8, 10), 9).double()  # solved by conjugate gradients
        data = blur(images)
    step = 1 / blur.norm_bound() ** 2
    denoiser = Averaged(Rotation(), 0.3)
    one = PnPForwardBackward(blur, denoiser, step, **EXACT)
    other = PnPADMM(blur, denoiser, 1 / step, **EXACT)
    torch.testing.assert_close(one(data).x, other(data).x, rtol=0, atol=1e-5)
    assert "averaged" in one.guarantee
    assert "firmly" in other.guarantee


def test_samples_are_on_their_own(blur, data):
    for solver in (PnPForwardBackward(blur, Towards(), tolerance=1e-6), PnPADMM(blur, Towards(), tolerance=1e-6)):
        both = solver(data)
        for i in range(2):
            alone = solver(data[i : i + 1])
            torch.testing.assert_close(alone.x[0], both.x[i], rtol=0, atol=1e-12)
            assert alone.iterations[0] == both.iterations[i]


def test_averaged_is_firmly_nonexpansive():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 500, 1, 3, 4, generator=generator, dtype=torch.float64)
    gap, moved = x - y, Averaged(Rotation())(x) - Averaged(Rotation())(y)
    assert (moved.square().sum((1, 2, 3)) <= (moved * gap).sum((1, 2, 3)) + 1e-12).all()
    raw = Rotation()(x) - Rotation()(y)
    assert (raw.square().sum((1, 2, 3)) > (raw * gap).sum((1, 2, 3))).any()


@pytest.mark.parametrize(
    ("denoiser", "known"),
    [
        (Towards(), 0.5),
        (Rotation(), 1.0),
        (Averaged(Rotation(), 0.2), 0.2),
        (Averaged(Averaged(Rotation())), 0.25),
        (Declares(LipschitzSpec(0.5)), 0.75),
        (Declares(LipschitzSpec(2.0)), None),
        (Declares(LipschitzSpec(1.0, "linf", "linf")), None),
        (Unknown(), None),
        (nn.Sequential(nn.ReLU(), SpectralConv2d(1, 1)), pytest.approx(1.0, abs=0.02)),
    ],
)
def test_what_denoisers_declare(denoiser, known):
    assert averagedness(denoiser) == known


def test_a_gradient_step_is_as_averaged_as_it_says(huber, logarithmic, images):
    class Scaled:
        def grad(self, x):
            return huber.grad(x) / huber.lipschitz()

        def lipschitz(self):
            return 1.0

        def weak_convexity(self):
            return 0.0

    step = GradientStep(Scaled())
    assert averagedness(step) == 0.5
    assert averagedness(GradientStep(logarithmic)) is None
    assert averagedness(nn.Sequential(step, step)) == 1
    assert GradientStep(logarithmic).lipschitz_spec().constant == 7
    gap = torch.randn_like(images)
    moved = step(images + gap) - step(images)
    assert moved.square().sum() <= (moved * gap).sum() + 1e-12


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda a: PnPForwardBackward(a, Unknown()), NotSupportedError, "not known"),
        (lambda a: PnPForwardBackward(a, Rotation()), NotSupportedError, "not enough"),
        (lambda a: PnPForwardBackward(a, Towards(), 2.1), NotSupportedError, "2/"),
        (lambda a: PnPADMM(a, Unknown()), NotSupportedError, "not known"),
        (lambda a: PnPADMM(a, Rotation()), NotSupportedError, "not enough"),
        (lambda a: PnPADMM(a, Declares(LipschitzSpec(0.5))), NotSupportedError, "0.75-averaged"),
        (lambda a: PnPADMM(a, Towards(), 0.0), ConfigError, "weight"),
        (lambda a: PnPADMM(a, nn.Flatten(), unchecked=True)(torch.ones(1, 1, 8, 10)), ShapeError, "Flatten"),
        (lambda a: Averaged(Unknown()).averagedness(), NotSupportedError, "Unknown"),
        (lambda a: Averaged(Rotation(), 1.5), ConfigError, "weight"),
    ],
)
def test_what_is_not_known_to_converge_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make(operators.Identity())


def test_unchecked_goes_on_and_says_so(blur, data):
    for solver in (PnPForwardBackward(blur, Unknown(), unchecked=True), PnPADMM(blur, Unknown(), unchecked=True)):
        assert solver.guarantee.startswith("unchecked")
        assert solver(data).x.shape == data.shape
    assert PnPForwardBackward(blur, Declares(LipschitzSpec(0.5))).guarantee.startswith("converges")
