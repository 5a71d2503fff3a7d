"""What the kernels share: dtypes, comparisons that know NaN, launch options."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

from functools import cache

import torch
import triton
import triton.language as tl

DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
OPTIONS = {"enable_fp_fusion": False}  # a fused multiply-add rounds once, eager twice


@cache
def processors(device: torch.device) -> int:
    """Number of streaming multiprocessors; one where kernels are interpreted."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def power_of_two(n: int, low: int, high: int) -> int:
    """The power of two that covers n, between two bounds."""
    return min(high, max(low, int(triton.next_power_of_2(n))))


@triton.jit
def bounded(x, DUAL: tl.constexpr, LARGEST: tl.constexpr, DTYPE: tl.constexpr):
    """Input in the compute dtype, negated for a dual operator; +inf becomes the largest finite number, NaN stays."""
    x = x.to(DTYPE)
    if DUAL:
        x = -x
    return tl.minimum(x, LARGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def better(score, best):
    """Whether a score takes the lead: it is greater, or the first NaN."""
    return (best == best) & ~(score <= best)


@triton.jit
def finished(best, DUAL: tl.constexpr, LARGEST: tl.constexpr):
    """Output of a maximum: the inverse of ``bounded``, and the sign of a dual operator."""
    y = tl.where(best > LARGEST / 2, float("inf"), best)
    if DUAL:
        y = -y
    return y
