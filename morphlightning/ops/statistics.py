"""What is counted about one weight in the backward pass: ghost leaves, and the histogram of gaps.

The gap of a maximum is its distance to the runner-up. Gaps of a batch are kept as counts in fixed bins, so that they
add up over micro-batches and processes, whatever the order. Each octave [2^k, 2^(k+1)) with -126 <= k < 128 holds 8
bins of equal width: the exponent of a number and the first three bits behind it. So the lower edge of a bin is exact,
and less than each of its gaps by at most 1/8 of it. Gaps below (ties) are in the first bin, those above (infinite
ones, of a single candidate) in the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_LOWEST, _OCTAVES = -126, 254
_FORMATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}
"""The integer of the same size, the bits of the fraction, and the exponent that stands for 2^0."""
GAP_BINS = 8 * _OCTAVES + 2


class Ghosts(NamedTuple):
    """Leaves that no value depends on and whose gradients are statistics; None where nobody reads them."""

    touches: Tensor | None = None
    """Of the weight's shape: the number of rows that touched each weight."""
    gaps: Tensor | None = None
    """Shape (GAP_BINS,): the histogram of the gaps of all rows with a message."""

    @property
    def wanted(self) -> bool:
        """Whether somebody reads any of them."""
        return self.touches is not None or self.gaps is not None

    def arranged(self, how: Callable[[Tensor], Tensor]) -> Ghosts:
        """The same leaves for a weight that is read as ``how(weight)``."""
        return Ghosts(None if self.touches is None else how(self.touches), self.gaps)


NO_GHOSTS = Ghosts()


def gap_histogram(gy: Tensor, arg: Tensor, gap: Tensor) -> Tensor:
    """Count the gaps of rows that have a winner and a message different from zero: (GAP_BINS,), float64."""
    integer, fraction, one = _FORMATS[gap.dtype]
    bins = (gap.view(integer) >> (fraction - 3)) - (8 * (one + _LOWEST) - 1)
    counted = bins.clamp(0, GAP_BINS - 1).masked_fill((gy == 0) | (arg < 0), GAP_BINS)
    return counted.flatten().bincount(minlength=GAP_BINS + 1)[:GAP_BINS].double()


@lru_cache(maxsize=8)
def _edges(device: torch.device) -> Tensor:
    """Lower edges of all bins but the first, ascending."""
    octaves = torch.arange(_LOWEST, _LOWEST + _OCTAVES, dtype=torch.float64).exp2()
    inside = 1 + torch.arange(8, dtype=torch.float64) / 8
    return torch.cat([torch.outer(octaves, inside).flatten(), octaves.new_tensor([math.inf])]).to(device)


def gap_quantile(histogram: Tensor, quantile: float) -> Tensor:
    """A gap that at least the share 1 - ``quantile`` of all rows without a tie reach.

    Args:
        histogram: The statistic ``"gaps"``.
        quantile: In [0, 1).

    Returns:
        The lower edge of the bin that holds the quantile, a float64 scalar: below the quantile by at most 1/8 of it;
        inf where every row is tied or has a single candidate.

    Source: derived in docs/conventions.md, "Update heuristics".
    """
    reached = histogram[1:].cumsum(0)
    at = (reached <= quantile * reached[-1]).sum().clamp_max(len(reached) - 1)
    return _edges(histogram.device)[at]
