r"""Kullback-Leibler divergences between laws of single numbers, in closed form and in nats.

Each gives :math:`\mathrm{KL}(q \| p) = \mathbb E_q[\log q - \log p]` element by element, broadcasting its arguments.
Independent weights add theirs up: the caller sums, never averages. ``to_bits`` divides by log 2.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

EULER = 0.57721566490153286
"""The mean of the standard Gumbel law, -Gamma'(1)."""


@overload
def to_bits(nats: Tensor) -> Tensor: ...
@overload
def to_bits(nats: float) -> float: ...
def to_bits(nats: Tensor | float) -> Tensor | float:
    """Information in bits: nats / log 2."""
    return nats / math.log(2)


def gaussian_kl(
    mean: Tensor, std: Tensor | float, prior_mean: Tensor | float = 0.0, prior_std: Tensor | float = 1.0
) -> Tensor:
    r"""KL of N(m, s^2) to N(m_0, s_0^2).

    .. math:: \tfrac12 \Bigl( \tfrac{s^2 + (m - m_0)^2}{s_0^2} - 1 \Bigr) + \log \tfrac{s_0}{s}

    Args:
        mean: m.
        std: s > 0.
        prior_mean: m_0.
        prior_std: s_0 > 0.

    Source: derived in docs/guarantees.md.
    """
    mean, std, prior_mean, prior_std = _together(mean, std, prior_mean, prior_std)
    ratio, shift = std / prior_std, (mean - prior_mean) / prior_std
    return 0.5 * (shift.square() + (ratio - 1) * (ratio + 1)) - ratio.log()


def gumbel_kl(
    location: Tensor, scale: Tensor | float, prior_location: Tensor | float = 0.0, prior_scale: Tensor | float = 1.0
) -> Tensor:
    r"""KL of Gumbel(m, b) to Gumbel(m_0, b_0), with densities :math:`\frac1b e^{-z - e^{-z}}`, z = (w - m) / b.

    .. math:: D + e^{-D}\,\Gamma(r + 1) - 1 + \gamma (r - 1) - \log r,
              \qquad D = \frac{m - m_0}{b_0},\quad r = \frac b{b_0}

    With equal scales it is :math:`D - 1 + e^{-D}`. Here :math:`\gamma` is Euler's constant.

    Args:
        location: m.
        scale: b > 0; the standard deviation is pi b / sqrt(6).
        prior_location: m_0.
        prior_scale: b_0 > 0.

    Source: derived in docs/guarantees.md.
    """
    location, scale, prior_location, prior_scale = _together(location, scale, prior_location, prior_scale)
    ratio, shift = scale / prior_scale, (location - prior_location) / prior_scale
    return shift + torch.expm1(torch.lgamma(ratio + 1) - shift) + EULER * (ratio - 1) - ratio.log()


def uniform_kl(low: Tensor, high: Tensor, prior_low: Tensor | float, prior_high: Tensor | float) -> Tensor:
    r"""KL of the uniform law on [low, high] to that on [prior_low, prior_high]: the log of the ratio of their lengths.

    inf where the first interval does not lie in the second. A one-sided interval, of which only one end is known, ends
    where the prior ends: it costs little where that leaves most of the prior.

    Args:
        low: Lower end.
        high: Upper end, above low.
        prior_low: Lower end of the prior.
        prior_high: Upper end of the prior.

    Source: derived in docs/guarantees.md.
    """
    low, high, prior_low, prior_high = _together(low, high, prior_low, prior_high)
    inside = (low >= prior_low) & (high <= prior_high)
    return torch.where(inside, ((prior_high - prior_low) / (high - low)).log(), math.inf)


def log_normal_kl(
    location: Tensor, scale: Tensor | float, prior_location: Tensor | float = 0.0, prior_scale: Tensor | float = 1.0
) -> Tensor:
    """KL of exp(N(m, s^2)) to exp(N(m_0, s_0^2)): that of the Gaussians, because the logarithm loses nothing.

    Args:
        location: m, the mean of the logarithm.
        scale: s > 0, the standard deviation of the logarithm.
        prior_location: m_0.
        prior_scale: s_0 > 0.

    Source: derived in docs/guarantees.md.
    """
    return gaussian_kl(location, scale, prior_location, prior_scale)


def log_uniform_kl(scale: Tensor, largest: float = 1.0) -> Tensor:
    r"""KL of exp(N(m, s^2)) to the log-uniform law, up to a constant: log(largest / s).

    That law is improper, its density proportional to 1/z, and does not depend on m; neither does the divergence, of
    which only differences mean something. The constant is such that it vanishes at s = ``largest``.

    Args:
        scale: s > 0, the standard deviation of the logarithm.
        largest: The largest scale that is used.

    Source: the prior of information dropout (Achille and Soatto, arXiv 1611.01353), in the form of its published code;
    derived in docs/guarantees.md.
    """
    (scale,) = _together(scale)
    return math.log(largest) - scale.log()


def _together(*values: Tensor | float) -> tuple[Tensor, ...]:
    """Tensors of one dtype, at least float32."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    device = tensors[0].device
    return tuple(torch.as_tensor(value, dtype=dtype, device=device) for value in values)
