"""Five inverse problems: an operator, and noise that is added to what it measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from morphlightning.inverse import operators
from morphlightning.inverse.operators import LinearOperator

NOISE = 0.01
"""Standard deviation, white is 1; of real and imaginary parts where data are complex."""


@dataclass(frozen=True)
class Problem:
    """Data are A x + noise.

    Attributes:
        name: Of the problem.
        about: What it is, in words.
        operator: A, for images of one size.
        guess: What all methods start from; None for A^T y / ||A||^2.
    """

    name: str
    about: str
    operator: LinearOperator
    guess: Callable[[Tensor], Tensor] | None = None

    def start(self, y: Tensor) -> Tensor:
        """What all methods start from."""
        return self.guess(y) if self.guess else self.operator.adjoint(y) / self.operator.norm_bound() ** 2

    def measure(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Data with noise."""
        exact = self.operator(clean)
        parts = torch.view_as_real(exact) if exact.is_complex() else exact
        noisy = parts + NOISE * torch.randn(parts.shape, generator=generator)
        return torch.view_as_complex(noisy) if exact.is_complex() else noisy


def gaussian(side: int, sigma: float) -> Tensor:
    """A kernel (side, side) that sums to 1."""
    line = torch.exp(-((torch.arange(side) - side // 2) ** 2) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def deblurring(side: int) -> Problem:
    operator = operators.CircularBlur(gaussian(9, 1.6), (side, side))
    return Problem("deblurring", "Gaussian blur of 1.6 pixels, periodic", operator)


def inpainting(side: int) -> Problem:
    """Missing pixels start as Gaussian means of those that are seen."""
    seen = torch.rand(side, side, generator=torch.Generator().manual_seed(1)) < 0.4
    spread = operators.CircularBlur(gaussian(9, 1.2), (side, side))
    share = spread(seen.float()[None, None])

    def guess(y: Tensor) -> Tensor:
        return torch.where(seen, y, spread(y) / share)

    return Problem("inpainting", "60 % of the pixels are missing", operators.Inpainting(seen), guess)


def super_resolution(side: int) -> Problem:
    operator = operators.SuperResolution(gaussian(7, 1.0), (side, side), 2)
    return Problem("super-resolution", "Gaussian blur of 1 pixel, every second pixel of both axes", operator)


def fourier(side: int) -> Problem:
    """A quarter of the columns of frequencies: 8 % around 0, the others at random."""
    middle = max(1, round(0.04 * side))
    frequency = torch.fft.fftfreq(side, 1 / side).abs()
    chance = torch.rand(side, generator=torch.Generator().manual_seed(2)) * (1 + frequency / side)
    chance[frequency < middle] = 0
    columns = chance <= chance.sort().values[side // 4 - 1]
    mask = columns.expand(side, side).clone()
    return Problem("Fourier x4", "a quarter of the columns of the Fourier transform", operators.FourierMask(mask))


def tomography(side: int) -> Problem:
    """The user's own projector: a reference of this package, scaled to norm 1."""
    beam = operators.ParallelBeam((side, side), max(8, round(0.35 * side)))
    norm = beam.norm_bound()
    own = operators.FromFunctions(lambda x: beam(x) / norm, lambda y: beam.adjoint(y) / norm, norm=1.0)
    own.check_adjoint(torch.zeros(1, 1, side, side))
    return Problem("CT", f"parallel beams at {beam.angles} angles, projector scaled to norm 1", own)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "deblurring": deblurring,
    "inpainting": inpainting,
    "super-resolution": super_resolution,
    "fourier": fourier,
    "ct": tomography,
}


def psnr(x: Tensor, clean: Tensor) -> list[float]:
    """Of each image, clipped to [0, 1], dB."""
    errors = (x.clamp(0, 1) - clean).square().flatten(1).mean(1)
    return [-10 * math.log10(float(error)) for error in errors]
