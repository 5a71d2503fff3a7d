"""Displacement fields of images whose gradient is known, not estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import ConfigError, DtypeError, ShapeError

Kind = Literal["max_entropy", "sine", "affine", "elastic"]
GradientNorm = Literal["l2", "linf"]


@dataclass(frozen=True, eq=False)
class Deformation:
    r"""Displacements :math:`\tau` of the pixels of images, which move :math:`X` to :math:`X(u - \tau(u))`.

    Between pixels :math:`\tau` is bilinear, outside of the image it has the value of the nearest point of the border.
    :attr:`gradient` is the supremum of the operator norm of its Jacobian, of that function and not of another one that
    was sampled: it is also the Lipschitz constant of :math:`\tau`. Below 1 the map :math:`u - \tau(u)` is a bijection
    of the plane and nothing folds, for :math:`(1 - \kappa)|y - u| \le |y - \tau(y) - u + \tau(u)|`.

    Args:
        tau: (fields, 2, height, width), floating-point, in pixels: ``tau[:, 0]`` along the width, ``tau[:, 1]`` along
            the height. One field, for all images, or one for each.
        remedy: What to lower where the gradient is too large, for the error.

    Raises:
        ShapeError: ``tau`` has another shape.
        DtypeError: It is not floating-point.
        ConfigError: A displacement that is not finite, or a field with a gradient of 1 or more.

    Source: definition as in arXiv 1712.04741; the closed form of the gradient is derived in docs/guarantees.md.
    """

    tau: Tensor
    remedy: str = "scale the field down"

    def __post_init__(self) -> None:
        """Refuse what may fold."""
        if self.tau.ndim != 4 or self.tau.shape[1] != 2 or 0 in self.tau.shape:
            raise ShapeError(f"Deformation: tau has shape {tuple(self.tau.shape)}, expected (fields, 2, height, width)")
        if not self.tau.is_floating_point():
            raise DtypeError(f"Deformation: tau has dtype {self.tau.dtype}, expected a floating-point one")
        if not self.tau.isfinite().all():
            raise ConfigError("Deformation: tau holds displacements that are not finite")
        steepest = float(self.gradient.max())
        if steepest >= 1:
            raise ConfigError(
                f"the displacement field has sup|grad tau| = {steepest:.4g}, expected less than 1, for u - tau(u) may "
                f"fold otherwise; {self.remedy}"
            )

    @property
    def gradient(self) -> Tensor:
        r"""sup|grad tau| of each field in the Euclidean norm, (fields,), float64."""
        return gradient_sup(self.tau.detach())

    @property
    def amplitude(self) -> Tensor:
        r"""sup|tau| of each field in pixels, (fields,), float64."""
        lengths: Tensor = self.tau.detach().double().norm(dim=1)
        return lengths.flatten(1).amax(1)


def gradient_sup(tau: Tensor, norm: GradientNorm = "l2") -> Tensor:
    r"""The Lipschitz constant of bilinear fields.

    In a cell between four pixels the derivatives along the width are those of its upper and its lower edge, mixed, and
    those along the height those of its left and its right edge. An operator norm is convex in the Jacobian, so it is
    largest at one of the four corners: the supremum is a maximum over cells and corners.

    Args:
        tau: (fields, 2, height, width), in pixels.
        norm: ``l2``, the largest singular value, or ``linf``, the largest sum of moduli of a row.

    Returns:
        The suprema (fields,), float64, rounded up.

    Source: derived in docs/guarantees.md.
    """
    tau = tau.double()
    along_width, along_height = tau.diff(dim=3), tau.diff(dim=2)  # of the edges of cells
    if along_width.shape[3] == 0:
        along_width = tau.new_zeros(*tau.shape[:3], 1)
    if along_height.shape[2] == 0:
        along_height = tau.new_zeros(*tau.shape[:2], 1, tau.shape[3])
    rows, columns = max(tau.shape[2] - 1, 1), max(tau.shape[3] - 1, 1)
    horizontal = along_width[:, :, :rows], along_width[:, :, -rows:]
    vertical = along_height[..., :columns], along_height[..., -columns:]
    norms = [_operator_norm(a, b, norm).flatten(1).amax(1) for a in horizontal for b in vertical]
    return torch.stack(norms).amax(0) * (1 + 1e-14)


def _operator_norm(along_width: Tensor, along_height: Tensor, norm: GradientNorm) -> Tensor:
    """Of the matrices with these columns (fields, 2, rows, columns)."""
    if norm == "linf":
        return (along_width.abs() + along_height.abs()).amax(1)
    (a, c), (b, d) = along_width.unbind(1), along_height.unbind(1)
    # singular values are (|conformal part| +- |anticonformal part|) / 2
    return (torch.hypot(a + d, c - b) + torch.hypot(a - d, c + b)) / 2


def affine(matrix: Tensor, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Deformation:
    r"""The field :math:`\tau(u) = A (u - c) + s` about the centre c of an image, with gradient :math:`\|A\|_2`.

    Args:
        matrix: A, (2, 2) or (fields, 2, 2); coordinates are (along the width, along the height).
        size: (height, width).
        shift: s in pixels.
    """
    matrix = matrix if matrix.ndim == 3 else matrix[None]
    height, width = size
    x, y = (torch.arange(n, dtype=matrix.dtype, device=matrix.device) - (n - 1) / 2 for n in (width, height))
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    moved = torch.einsum("nij,jhw->nihw", matrix, places)
    return Deformation(moved + moved.new_tensor(shift)[:, None, None], "take a matrix of smaller norm")


@dataclass(frozen=True)
class DisplacementField:
    r"""Draws smooth random displacement fields with a gradient, or an amplitude, that is given.

    A field of its kind is drawn and scaled, so that :math:`\sup|\nabla\tau|` is exactly ``gradient`` (up to rounding),
    or :math:`\sup|\tau|` exactly ``amplitude``. With n the longer side of the image in pixels and (x, y) measured from
    its edge,

    ===============  ==================================================================================================
    ``max_entropy``  :math:`\sum C_{ij} \sin(i\pi x/W) \sin(j\pi y/H)` over :math:`i^2 + j^2 < (c + 1/2)^2`, Gaussian
                     :math:`C_{ij}` of variance :math:`1 / ((in/W)^2 + (jn/H)^2)`, c = ``cut``; 0 at the edge
    ``sine``         :math:`d \sin(2\pi k \cdot u / n + \varphi)`: random directions d and k, :math:`|k|` = ``waves``
    ``affine``       :math:`A (u - c)`, Gaussian A: stretchings, shears and rotations about the centre
    ``elastic``      uniform noise of each pixel, smoothed by a Gaussian of ``sigma`` pixels
    ===============  ==================================================================================================

    Args:
        kind: One of these.
        gradient: :math:`\sup|\nabla\tau|` of each field, in [0, 1).
        amplitude: :math:`\sup|\tau|` of each field in pixels, in place of ``gradient``.
        cut: Largest frequency of ``max_entropy``.
        waves: Waves along the longer side, of ``sine``.
        sigma: Of ``elastic``, in pixels.

    Raises:
        ConfigError: A value out of its range; both or none of gradient and amplitude.

    Source: ``max_entropy`` follows the code of Petrini et al., "Relative stability toward diffeomorphisms indicates
    performance in deep nets", arXiv 2105.02468, with fields that vanish at the edge of the image instead of its
    outermost pixels; other sizes than squares, and the scaling, are derived here.
    """

    kind: Kind = "max_entropy"
    gradient: float | None = None
    amplitude: float | None = None
    cut: int = 3
    waves: float = 1.0
    sigma: float = 4.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.kind not in get_args(Kind):
            raise ConfigError(f"DisplacementField: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if (self.gradient is None) == (self.amplitude is None):
            raise ConfigError(
                f"DisplacementField: expected gradient or amplitude, got gradient={self.gradient} and "
                f"amplitude={self.amplitude}"
            )
        if self.gradient is not None and not 0 <= self.gradient < 1:
            raise ConfigError(
                f"DisplacementField: gradient={self.gradient}, expected sup|grad tau| in [0, 1), for u - tau(u) may "
                "fold otherwise; lower gradient"
            )
        if self.amplitude is not None and not 0 <= self.amplitude < math.inf:
            raise ConfigError(f"DisplacementField: amplitude={self.amplitude}, expected pixels >= 0")
        if not (self.cut >= 1 and self.waves > 0 and self.sigma > 0):
            raise ConfigError(
                f"DisplacementField: expected cut >= 1, waves > 0 and sigma > 0, got {self.cut}, {self.waves} and "
                f"{self.sigma}"
            )

    def draw(
        self,
        size: tuple[int, int],
        count: int = 1,
        seed: int | torch.Generator = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Deformation:
        """Draw fields; torch's global random state is left alone, and the same seed gives the same on all devices.

        Args:
            size: (height, width) in pixels.
            count: How many.
            seed: Of the fields, or a generator on the CPU.
            dtype: Of the displacements.
            device: Of the displacements.

        Raises:
            ConfigError: With an amplitude, a field whose gradient is 1 or more. An image on which fields of this kind
                have no gradient, such as a single pixel, where one is asked for.
        """
        source = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        tau = _DRAWERS[self.kind](self, size, count, source)
        if self.gradient is not None:
            measured, wanted = gradient_sup(tau), self.gradient
        else:
            measured, wanted = tau.norm(dim=1).flatten(1).amax(1), self.amplitude or 0.0
        if wanted and not measured.all():
            raise ConfigError(
                f"DisplacementField: fields of kind {self.kind!r} on {size[0]} x {size[1]} pixels are constant; take "
                "larger images"
            )
        scale = torch.where(measured > 0, wanted / measured, 0.0)
        # rounding to dtype may steepen a field of gradient close to 1; Deformation measures what is there
        return Deformation((tau * scale[:, None, None, None]).to(device, dtype), self._remedy(scale, tau))

    def _remedy(self, scale: Tensor, tau: Tensor) -> str:
        if self.amplitude is None:
            return "lower gradient"
        smoother = {"max_entropy": ", or lower cut", "sine": ", or lower waves", "elastic": ", or raise sigma"}
        largest = self.amplitude / float((gradient_sup(tau) * scale).max().clamp_min(1e-300))
        return f"lower amplitude={self.amplitude} px below {largest:.3g} px{smoother.get(self.kind, '')}"


def _max_entropy(field: DisplacementField, size: tuple[int, int], count: int, source: torch.Generator) -> Tensor:
    along_height, along_width = (_sines(n, field.cut) for n in size)
    n, order = max(size), torch.arange(1, field.cut + 1, dtype=torch.float64)
    index = (order[:, None].square() + order.square()).sqrt()  # j along the height, i along the width
    frequency = torch.hypot(order[:, None] * n / size[0], order * n / size[1])
    deviation = (index < field.cut + 0.5) / frequency
    coefficients = torch.randn(count, 2, *deviation.shape, generator=source, dtype=torch.float64) * deviation
    return torch.einsum("ncji,hj,wi->nchw", coefficients, along_height, along_width)


def _sines(n: int, cut: int) -> Tensor:
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (math.pi * places[:, None] * torch.arange(1, cut + 1)).sin()


def _sine(field: DisplacementField, size: tuple[int, int], count: int, source: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(3, count, 1, 1, generator=source, dtype=torch.float64)
    frequency = 2 * math.pi * field.waves / max(size)
    y, x = torch.arange(size[0], dtype=torch.float64)[:, None], torch.arange(size[1], dtype=torch.float64)
    wave = (frequency * (angle[0].cos() * x + angle[0].sin() * y) + angle[2]).sin()
    return torch.stack([angle[1].cos() * wave, angle[1].sin() * wave], 1)


def _affine(field: DisplacementField, size: tuple[int, int], count: int, source: torch.Generator) -> Tensor:
    matrix = torch.randn(count, 2, 2, generator=source, dtype=torch.float64)
    return affine(matrix / (2 * torch.linalg.matrix_norm(matrix, 2)[:, None, None]), size).tau


def _elastic(field: DisplacementField, size: tuple[int, int], count: int, source: torch.Generator) -> Tensor:
    reach = math.ceil(4 * field.sigma)  # noise beyond the image too, so that the field is stationary up to the border
    height, width = (n + 2 * reach for n in size)
    noise = 2 * torch.rand(2 * count, 1, height, width, generator=source, dtype=torch.float64) - 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / field.sigma).square())
    smooth = F.conv2d(F.conv2d(noise, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return smooth.view(count, 2, *size)


_DRAWERS: dict[str, Callable[[DisplacementField, tuple[int, int], int, torch.Generator], Tensor]] = {
    "max_entropy": _max_entropy,
    "sine": _sine,
    "affine": _affine,
    "elastic": _elastic,
}
