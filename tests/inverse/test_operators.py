"""Operators against their adjoints, dense matrices and other packages."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.transform import radon

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.inverse import TotalVariation, operators

SIZE = (12, 10)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


KERNEL = draw(3, 5, seed=3)
MAKERS = {
    "identity": lambda: operators.Identity(),
    "circular_blur": lambda: operators.CircularBlur(KERNEL, SIZE),
    "circular_blur_odd": lambda: operators.CircularBlur(KERNEL, (11, 9)),
    "valid_blur": lambda: operators.ValidBlur(KERNEL),
    "super_resolution": lambda: operators.SuperResolution(KERNEL, SIZE, 2),
    "inpainting": lambda: operators.Inpainting(mask(*SIZE)),
    "inpainting_channels": lambda: operators.Inpainting(mask(2, *SIZE)),
    "fourier_mask": lambda: operators.FourierMask(mask(*SIZE)),
    "fourier_mask_odd": lambda: operators.FourierMask(mask(11, 9)),
    "parallel_beam": lambda: operators.ParallelBeam(SIZE, 7).double(),
    "from_functions": lambda: operators.FromFunctions(lambda x: 2 * x.roll(1, -1), lambda y: 2 * y.roll(-1, -1), 2.0),
}


def images(name, batch=2, channels=2):
    return draw(batch, channels, *((11, 9) if name.endswith("odd") else SIZE))


def matrix(operator, name):
    """The dense matrix for one channel, complex data as real and imaginary parts."""
    basis = torch.eye(images(name)[0, 0].numel(), dtype=torch.float64).view(-1, 1, *images(name).shape[-2:])
    image = operator(basis)
    if image.is_complex():
        image = torch.view_as_real(image)
    return image.flatten(1).T


SINGLE = [name for name in MAKERS if name != "inpainting_channels"]


@pytest.mark.parametrize("name", MAKERS)
def test_adjoint(name):
    operator, x = MAKERS[name](), images(name)
    image = operator(x)
    y = draw(*image.shape, seed=1, dtype=image.dtype)
    torch.testing.assert_close((image * y.conj()).sum().real, (x * operator.adjoint(y)).sum(), rtol=1e-10, atol=1e-10)
    assert operator.adjoint(y).shape == x.shape
    torch.testing.assert_close(operator.normal(x), operator.adjoint(image), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SINGLE)
def test_bounds_hold_and_are_tight_where_they_are_exact(name):
    operator = MAKERS[name]()
    dense = matrix(operator, name)
    singular = torch.linalg.svdvals(dense)
    assert singular[0] <= operator.norm_bound()
    smallest = singular[-1] if dense.shape[0] >= dense.shape[1] else torch.tensor(0.0)
    assert operator.lower_bound() <= smallest + 1e-12
    if name != "valid_blur":
        assert operator.norm_bound() <= singular[0] * (1.02 if name == "parallel_beam" else 1 + 1e-4)
    if name.startswith(("circular", "identity", "fourier_mask")):
        assert operator.lower_bound() >= smallest - 1e-3


@pytest.mark.parametrize("name", SINGLE)
def test_solve_inverts(name):
    operator, z = MAKERS[name](), images(name, channels=1)
    dense = matrix(operator, name)
    inverse = torch.linalg.inv(dense.T @ dense + 0.3 * torch.eye(dense.shape[1], dtype=torch.float64))
    expected = (z.flatten(1) @ inverse.T).view_as(z)
    torch.testing.assert_close(operator.solve(z, 0.3, 1e-10), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="positive"):
        operator.solve(z, 0.0)


@pytest.mark.parametrize("name", MAKERS)
def test_differentiable_with_the_adjoint_as_gradient(name):
    operator, x = MAKERS[name](), images(name, 1).requires_grad_()
    image = operator(x)
    y = draw(*image.shape, seed=2, dtype=image.dtype)
    (gradient,) = torch.autograd.grad((image * y.conj()).sum().real, x)
    torch.testing.assert_close(gradient, operator.adjoint(y), rtol=1e-10, atol=1e-10)
    (back,) = torch.autograd.grad((operator.adjoint(y.requires_grad_()) * x).sum(), y)
    torch.testing.assert_close(back, operator(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_single_precision_and_each_sample_alone(name):
    operator, x = MAKERS[name]().float(), images(name, 3).float()
    image = operator(x)
    assert operator.adjoint(image).dtype == torch.float32
    torch.testing.assert_close(operator(x[1:2]), image[1:2])


def test_blurs_agree_with_scipy():
    x = draw(1, 1, *SIZE)
    expected = ndimage.convolve(x[0, 0].numpy(), KERNEL.numpy(), mode="wrap")
    np.testing.assert_allclose(operators.CircularBlur(KERNEL, SIZE)(x)[0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(operators.ValidBlur(KERNEL)(x)[0, 0], expected[1:-1, 2:-2], atol=1e-12)


def test_strips_agree_with_skimage_on_a_disc():
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    disc = torch.where((x - 8).square() + (y + 5).square() < 150, 1.0, 0.0)
    degrees = np.arange(0, 180, 15.0)
    beam = operators.ParallelBeam((65, 65), torch.from_numpy(degrees).deg2rad(), 65)
    ours = beam(disc[None, None])[0, 0]
    other = torch.from_numpy(radon(disc.numpy(), degrees, circle=True).T).float()
    assert (ours - other).norm() / other.norm() < 0.03
    torch.testing.assert_close(ours.sum(1), disc.sum().expand(12))  # every pixel casts its whole shadow


def test_a_disc_casts_chords():
    y, x = torch.meshgrid(torch.arange(128.0) - 63.5, torch.arange(128.0) - 63.5, indexing="ij")
    disc = torch.where(x.square() + y.square() < 50**2, 1.0, 0.0)
    sinogram = operators.ParallelBeam((128, 128), 5, 128)(disc[None, None])[0, 0]
    middle = torch.arange(128.0) - 63.5
    chords = 2 * (50**2 - middle.square()).clamp_min(0).sqrt()
    assert (sinogram - chords).abs()[:, 24:-24].max() < 2.0


def test_an_operator_of_the_user_is_checked_on_request():
    wrong = operators.FromFunctions(lambda x: x.roll(1, -1), lambda y: y, 1.0)
    with pytest.raises(ConfigError, match="adjoint"):
        wrong.check_adjoint(torch.zeros(1, 1, 8, 8))
    operators.FromFunctions(lambda x: x.roll(1, -1), lambda y: y.roll(-1, -1), 1.0).check_adjoint(
        torch.zeros(1, 1, 8, 8)
    )


def test_objects_with_a_and_its_adjoint_are_operators():
    class Physics(torch.nn.Module):
        def A(self, x):
            return 3 * x

        A_adjoint = A

    operator = operators.of(Physics(), norm=3.0)
    x = draw(1, 1, 4, 4)
    torch.testing.assert_close(operator.normal(x), 9 * x)
    assert operators.estimate_norm(operator, x) == pytest.approx(3.0)
    with pytest.raises(NotSupportedError, match="A_adjoint"):
        operators.of(torch.nn.ReLU(), norm=1.0)


def test_deepinv_physics():
    physics = pytest.importorskip("deepinv").physics
    x = draw(1, 1, 16, 16, dtype=torch.float32)
    blur = operators.of(physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular"), norm=1.0)
    blur.check_adjoint(x)
    torch.testing.assert_close(blur(x), operators.CircularBlur(torch.ones(3, 3) / 9, (16, 16))(x), rtol=0, atol=1e-5)
    beam = physics.Tomography(angles=20, img_width=16, circle=False, normalize=True)
    operator = operators.of(beam, norm=1.05 * operators.estimate_norm((beam.A, beam.A_adjoint), x))
    operator.check_adjoint(x)
    assert TotalVariation(operator, 1e-3)(beam.A(x.clamp(0, 1))).residual < 1e-3


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: operators.CircularBlur(torch.ones(4, 3), SIZE), ShapeError, "odd"),
        (lambda: operators.CircularBlur(torch.ones(13, 3), SIZE), ShapeError, "smaller"),
        (lambda: operators.SuperResolution(KERNEL, (11, 10), 2), ShapeError, r"crop the images to \(10, 10\)"),
        (lambda: operators.SuperResolution(KERNEL, SIZE, 1), ConfigError, "factor"),
        (lambda: operators.Inpainting(torch.ones(3, 3)), ConfigError, "bool"),
        (lambda: operators.FourierMask(torch.zeros(3, 3, dtype=torch.bool)), ConfigError, "no true"),
        (lambda: operators.FourierMask(mask(2, 3, 3)), ShapeError, "mask"),
        (lambda: operators.ParallelBeam(SIZE, torch.zeros(0)), ConfigError, "angles"),
        (lambda: operators.FromFunctions(abs, abs, 0.0), ConfigError, "norm"),
        (lambda: operators.CircularBlur(KERNEL, SIZE)(draw(1, 1, 10, 12)), ShapeError, "12, 10"),
        (lambda: operators.ValidBlur(KERNEL)(draw(1, 1, 2, 12)), ShapeError, "kernel"),
        (lambda: operators.ParallelBeam(SIZE, 3).adjoint(draw(1, 1, 2, 12)), ShapeError, "sinograms"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
