"""Deformed images are what their formula says."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import map_coordinates

from morphlightning.errors import DtypeError, ShapeError
from morphlightning.guarantees.stability import Deformation, DisplacementField, affine, deform

DOUBLE = torch.float64


def test_a_ramp_moves_by_its_slope_times_the_displacement() -> None:
    """GEO-2: X = a . u gives X - L_tau X = a . tau, where u - tau(u) is inside."""
    height, width = 24, 33
    y, x = torch.meshgrid(*(torch.arange(n, dtype=DOUBLE) for n in (height, width)), indexing="ij")
    ramp = (0.3 * x - 0.2 * y).expand(8, 1, height, width)
    field = DisplacementField(gradient=0.4).draw((height, width), 8, dtype=DOUBLE)
    inside = (x - field.tau[:, 0]).clamp(0, width - 1) == x - field.tau[:, 0]
    inside &= (y - field.tau[:, 1]).clamp(0, height - 1) == y - field.tau[:, 1]
    expected = 0.3 * field.tau[:, 0] - 0.2 * field.tau[:, 1]
    assert inside.double().mean() > 0.9
    torch.testing.assert_close((ramp - deform(ramp, field))[:, 0][inside], expected[inside], atol=1e-12, rtol=0)


def test_agrees_with_scipy_beyond_the_border_too() -> None:
    images = torch.randn(3, 2, 7, 11, dtype=DOUBLE)
    field = DisplacementField("affine", gradient=0.6).draw((7, 11), 3, seed=2, dtype=DOUBLE)
    field = Deformation(field.tau + 2.3)
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(11.0), indexing="ij")
    for image, tau, seen in zip(images, field.tau, deform(images, field), strict=True):
        for channel, found in zip(image, seen, strict=True):
            at = torch.stack([y - tau[1], x - tau[0]]).numpy()
            expected = torch.from_numpy(map_coordinates(channel.numpy(), at, order=1, mode="nearest"))
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_displacements_by_integers_copy_bit_for_bit(dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 6, 9).to(dtype)
    assert torch.equal(deform(images, Deformation(torch.zeros(1, 2, 6, 9, dtype=dtype))), images)
    field = Deformation(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 9))
    moved = deform(images, field)
    assert moved.dtype == dtype
    assert torch.equal(moved[..., :-1, 2:], images[..., 1:, :-2])
    assert torch.equal(moved[..., 2:][..., -1, :], images[..., -1, :-2]), "the border is replicated"


def test_values_stay_between_those_of_the_image() -> None:
    """The global maximum of an image cannot be exceeded, and that of its pixels moves by integer bijections alone."""
    images = torch.rand(50, 1, 16, 16)
    moved = deform(images, DisplacementField("elastic", gradient=0.9).draw((16, 16), 50))
    assert (moved.amax((2, 3)) <= images.amax((2, 3))).all()
    assert (moved.amin((2, 3)) >= images.amin((2, 3))).all()
    rolled = images.roll((3, -5), (2, 3))
    assert torch.equal(rolled.amax((2, 3)), images.amax((2, 3)))


def test_gradients() -> None:
    images = torch.randn(2, 1, 4, 5, dtype=DOUBLE, requires_grad=True)
    tau = DisplacementField("sine", gradient=0.3).draw((4, 5), 2, seed=5, dtype=DOUBLE).tau.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: deform(x, Deformation(t)), (images, tau))


def test_an_affine_field_zooms() -> None:
    """tau = (u - c) / 2 magnifies twice: X(u - tau(u)) = X(c + (u - c) / 2)."""
    image = torch.arange(9.0).expand(1, 1, 5, 9)
    zoomed = deform(image, affine(torch.eye(2) / 2, (5, 9)))
    assert torch.equal(zoomed[0, 0, 0], 4 + (torch.arange(9.0) - 4) / 2)


def test_what_does_not_fit_is_refused() -> None:
    field = DisplacementField(gradient=0.1).draw((4, 5), 2)
    with pytest.raises(ShapeError, match=r"images have shape \(2, 1, 5, 4\) and fields \(2, 2, 4, 5\)"):
        deform(torch.zeros(2, 1, 5, 4), field)
    with pytest.raises(ShapeError, match="one field, or one for each image"):
        deform(torch.zeros(3, 1, 4, 5), field)
    with pytest.raises(DtypeError, match="uint8"):
        deform(torch.zeros(2, 1, 4, 5, dtype=torch.uint8), field)
