r"""Norms of linear maps between l2 spaces: upper bounds that hold, and estimates from below.

Convolutions here are those of finitely supported images on all of :math:`\mathbb{Z}^n` (full padding: nothing is cut
off). One is a multiplication by its symbol :math:`\hat W(\omega)`, a matrix of trigonometric polynomials, so

.. math:: \|W\|^2 = \max_\omega \lambda_{\max}(\hat W(\omega)^* \hat W(\omega)).

The maximum is searched on a grid, and what may lie between its points is bounded: for a unit vector v the function
:math:`p = v^* \hat W^* \hat W v` is a trigonometric polynomial with values in [0, M], of degree d along an axis where
the kernel has d + 1 taps. Around a maximum at :math:`t_0` it stays above :math:`M \cos^2(d (t - t_0) / 2)` up to the
distance :math:`\pi / d` (M. Riesz 1914, for p - M/2); a grid of n > d points has one within :math:`\pi / n`. Hence,
axis by axis,

.. math:: \|W\|^2 \le \max_{\text{grid}} \lambda_{\max} \prod_{\text{axes}} \cos^{-2}(\pi d / 2n).

The step from Riesz' lemma to non-negative polynomials is derived here; it halves the excess of the factor
:math:`1/\cos(\pi d / n)` for polynomials of any sign (Ehlich and Zeller 1964).

What is cut out of such a convolution (zero padding by less than k - 1, a stride) has no larger norm. That holds layer
by layer, not for stacks: zeros put around intermediate images are no part of the convolution of composed kernels, and
the norm of a zero-padded stack can be above the maximum of the composed symbol. For such stacks multiply the norms of
their layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError

LANCZOS_STEPS = 20
ROUNDING = 64
"""So many times the machine precision is added to bounds, relative, for the rounding of what they are computed from."""
CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
BLOCK = 2**22
"""At most so many numbers of symbols exist at once, beyond the symbol of one frequency."""


def dense_norm(weight: Tensor) -> Tensor:
    """Largest singular value of a matrix (..., out, in), as a scalar for each; can be differentiated twice.

    The root of the largest eigenvalue of the smaller Gram matrix, computed at least in float32, and a few units of
    rounding more: never below the norm. Zero for a matrix of zeros, with gradient zero.
    """
    weight, scale = scaled(weight)
    return _largest(weight).sqrt() * scale * (1 + ROUNDING * torch.finfo(weight.dtype).eps)


def convolution_norm(weights: Tensor | Sequence[Tensor], *, slack: float = 0.02, groups: int = 1) -> Tensor:
    """Upper bound of the norm of a convolution, or of several one after another, with full padding.

    Args:
        weights: Kernels as torch's convolutions have them, ``(out, in / groups, *taps)`` with 1 to 3 axes of taps; in
            order of application. Biases play no role.
        slack: At most so far, relative, the bound is above the norm; a smaller slack takes a finer grid.
        groups: Groups of channels, the same for each.

    Returns:
        The bound, a scalar, at least in float32; a few units of rounding are added. Its gradient is that of the symbol
        at the frequency of the maximum.

    Raises:
        ShapeError: Kernels that do not follow one another.
        ConfigError: slack is not positive.
    """
    gram, scale = _scaled_gram_norm(weights, None, slack * (2 + slack), groups)
    return gram.sqrt() * scale


def gram_norm(
    weights: Tensor | Sequence[Tensor],
    channel_weights: Tensor | None = None,
    *,
    slack: float = 0.04,
    groups: int = 1,
) -> Tensor:
    r"""Upper bound of :math:`\|W^T \mathrm{diag}(s) W\|` for the convolution W of :func:`convolution_norm`.

    With slopes s >= 0 of profiles that act on the channels of Wx it bounds the Hessian of a sum of ridge functions.

    Args:
        weights: As for :func:`convolution_norm`.
        channel_weights: s, one number for each output channel, none negative; None for ones.
        slack: At most so far, relative, the bound is above the norm.
        groups: As for :func:`convolution_norm`.

    Raises:
        ShapeError: Kernels that do not follow one another, or another number of channel weights.
        ConfigError: slack is not positive.
    """
    gram, scale = _scaled_gram_norm(weights, channel_weights, slack, groups)
    return gram * scale**2


def _scaled_gram_norm(
    weights: Tensor | Sequence[Tensor], channel_weights: Tensor | None, slack: float, groups: int
) -> tuple[Tensor, Tensor]:
    """The bound for the composed kernel over its largest entry, and that entry."""
    if not slack > 0:
        raise ConfigError(f"slack must be positive, got {slack}: a grid of finitely many frequencies leaves some")
    kernel, scale = scaled(composed([weights] if isinstance(weights, Tensor) else weights, groups))
    kernel = kernel.unflatten(0, (groups, -1))
    if channel_weights is not None:
        if channel_weights.shape != (kernel.shape[0] * kernel.shape[1],):
            raise ShapeError(f"channel_weights has shape {tuple(channel_weights.shape)}, expected one for each output")
        channel_weights = channel_weights.to(kernel.dtype).view(groups, -1)
    taps = kernel.shape[3:]
    points = [_points(size - 1, slack, len(taps)) for size in taps]
    frequency, group = _search(kernel.detach(), channel_weights, points)
    s = None if channel_weights is None else channel_weights[group]
    symbol = _symbol_at(kernel[group], [2 * math.pi * f / n for f, n in zip(frequency, points, strict=True)])
    factor = math.prod(math.cos(math.pi * (size - 1) / (2 * n)) ** -2 for size, n in zip(taps, points, strict=True))
    return _largest(symbol, s) * (factor * (1 + ROUNDING * torch.finfo(kernel.dtype).eps)), scale


def composed(weights: Sequence[Tensor], groups: int = 1) -> Tensor:
    """The kernel of several convolutions one after another, (out, in / groups, *taps), at least in float32.

    Raises:
        ShapeError: Kernels that do not follow one another.
    """
    whole: Tensor | None = None
    for weight in weights:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if weight.ndim not in CONVOLUTIONS or len(weight) % groups:
            raise ShapeError(
                f"a kernel has shape {tuple(weight.shape)}, expected (out, in / groups, *taps) with 1 to 3 axes of "
                f"taps and outputs divisible by groups={groups}"
            )
        if whole is None:
            whole = weight
            continue
        if len(whole) != weight.shape[1] * groups or whole.ndim != weight.ndim:
            raise ShapeError(
                f"a kernel of shape {tuple(weight.shape)} takes {weight.shape[1] * groups} channels and cannot follow "
                f"one of shape {tuple(whole.shape)}"
            )
        spatial = list(range(2, weight.ndim))
        images = whole.unflatten(0, (groups, -1)).movedim(2, 0).flatten(1, 2)
        padding = [weight.shape[axis] - 1 for axis in spatial]
        images = CONVOLUTIONS[weight.ndim](images, weight.flip(spatial), padding=padding, groups=groups)
        whole = images.movedim(0, 1)
    if whole is None:
        raise ShapeError("no kernels given")
    return whole


def lanczos_norm(normal_map: Callable[[Tensor], Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """The largest eigenvalue of v -> W^T W v, from below, by some steps of Lanczos' iteration from a fixed vector."""
    shape = torch.Size(shape)
    v, before, beta = _direction(shape).to(like), like.new_zeros(shape), like.new_zeros(())
    diagonal, beside = [], []
    for _ in range(LANCZOS_STEPS):
        image = normal_map(v)
        diagonal.append((v * image).sum())
        image = image - diagonal[-1] * v - beta * before
        beta = image.norm()
        beside.append(beta)
        before, v = v, image / beta.clamp_min(torch.finfo(v.dtype).tiny)
    band = torch.diag(torch.stack(diagonal)) + torch.diag(torch.stack(beside[:-1]), -1)
    largest: Tensor = torch.linalg.eigvalsh(band)[-1]
    return largest


def scaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight over its largest entry, and that: squares of squares must neither vanish nor overflow."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = torch.linalg.vector_norm(weight.detach(), math.inf)
    scale = largest.clamp_min(torch.finfo(weight.dtype).tiny)
    return weight / scale, scale


def _largest(matrix: Tensor, weights: Tensor | None = None) -> Tensor:
    """Largest eigenvalue of A* diag(s) A, for a batch of matrices A (..., out, in)."""
    weighted = matrix if weights is None else weights[:, None] * matrix
    tiny = torch.finfo(matrix.dtype).tiny  # a root at 0 has no slope
    if matrix.shape[-1] == 1:  # the closed form of one channel
        return (matrix.conj() * weighted).real.sum((-2, -1)).clamp_min(tiny)
    if weights is None and matrix.shape[-2] < matrix.shape[-1]:
        matrix = weighted = matrix.mH
    largest: Tensor = torch.linalg.eigvalsh(matrix.mH @ weighted)[..., -1].clamp_min(tiny)
    return largest


def _points(degree: int, slack: float, axes: int) -> int:
    """A number of frequencies along an axis that leaves 1 + slack between the maximum on the grid and the bound."""
    if degree == 0:
        return 1
    angle = math.acos((1 + slack) ** (-0.5 / axes))
    return _fast(max(degree + 1, math.ceil(math.pi * degree / (2 * angle))))


def _fast(size: int) -> int:
    """The next size with prime factors up to 5, for the Fourier transform."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


@torch.no_grad()
def _search(kernel: Tensor, channel_weights: Tensor | None, points: Sequence[int]) -> tuple[list[int], int]:
    """Where the largest eigenvalue of the symbol of a kernel (groups, out, in, *taps) is: frequency and group.

    The symbol at -w is the conjugate of that at w, hence half of the last axis is enough.
    """
    axes = list(range(-len(points), 0))
    best, where, chosen = -math.inf, [0] * len(points), 0
    for group, one in enumerate(kernel):
        symbol = torch.fft.rfftn(one, s=list(points), dim=axes)
        grid = symbol.shape[2:]
        matrices = symbol.flatten(2).permute(2, 0, 1)
        s = None if channel_weights is None else channel_weights[group]
        each = max(1, BLOCK // matrices[0].numel())
        largest = torch.cat([_largest(part, s) for part in matrices.split(each)])
        at = int(largest.argmax())
        if float(largest[at]) > best:
            best, chosen = float(largest[at]), group
            where = [int(i) for i in torch.unravel_index(torch.tensor(at), grid)]
    return where, chosen


def _symbol_at(kernel: Tensor, angles: Sequence[float]) -> Tensor:
    """The symbol (out, in) of a kernel (out, in, *taps) at one frequency."""
    for angle in reversed(angles):
        phases = torch.arange(kernel.shape[-1], device=kernel.device, dtype=torch.float64) * -angle
        wave = torch.polar(torch.ones_like(phases), phases)
        dtype = torch.promote_types(kernel.dtype, torch.complex64)
        kernel = kernel.to(dtype) @ wave.to(dtype)
    return kernel


def _direction(shape: torch.Size) -> Tensor:
    """A unit vector, always the same, without structure: a constant one is orthogonal to filters that sum to 0."""
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return vector.div_(vector.norm())
