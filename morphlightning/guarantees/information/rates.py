r"""What a noisy unit tells about what it was: rates of channels with the best marginal, in closed form and in nats.

For a channel p(z|h) and any law r of z, :math:`I(Z; h) \le \mathbb E\,\mathrm{KL}(p(z|h) \| r)`, with equality where r
is the law of Z. Here r is the best of the channel's own family, and E the mean over the rows of h - those of all
processes, if ``gather`` stacks what they have. The parameters of r are the minimum of the rate over them, so the rate
has the gradient that it has with them held fixed; that is how it is computed, and why each process gets its own part.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


def _alone(value: Tensor) -> Tensor:
    return value.unsqueeze(0)


def gumbel_rate(h: Tensor, scale: float, gather: Gather = _alone) -> Tensor:
    r"""Rate of Z = h + Gumbel(0, B) of each unit: :math:`\mathbb E[h] / B + \log \mathbb E\, e^{-h / B}`, units (K,).

    Args:
        h: Activations, (rows, K).
        scale: B > 0.
        gather: Stacks the values of all processes along a new first axis; their rates' mean is that of all rows.

    Source: derived in docs/guarantees.md.
    """
    scaled = h / scale
    local = torch.cat([torch.logsumexp(-scaled.detach(), 0), scaled.new_tensor([math.log(len(h))])])
    logs = torch.logsumexp(gather(local), 0)
    difference = scaled + (logs[:-1] - logs[-1])  # (h - mu) / B with the best location mu
    return (difference + torch.expm1(-difference)).mean(0)


def gaussian_rate(h: Tensor, std: float, gather: Gather = _alone) -> Tensor:
    r"""Rate of Z = h + N(0, s^2) of each unit: :math:`\tfrac12 \log(1 + \mathrm{Var}[h] / s^2)`, units (K,).

    It is the information itself where h is Gaussian. Of the logarithms of positive activations it is the rate of noise
    that multiplies, Z = h exp(N(0, s^2)).

    Args:
        h: Activations, (rows, K).
        std: s > 0.
        gather: As for :func:`gumbel_rate`.

    Source: derived in docs/guarantees.md.
    """
    seen = h.detach()
    count = seen.new_tensor([len(h)])
    sums = gather(torch.cat([seen.sum(0), count])).sum(0)
    mean = sums[:-1] / sums[-1]
    variance = gather((seen - mean).square().sum(0)).sum(0) / sums[-1]
    total = variance + std**2
    return 0.5 * ((std**2 + (h - mean).square()) / total - 1 + (total / std**2).log()).mean(0)
