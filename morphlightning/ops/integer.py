"""Max-plus products of 16-bit integers: by the kernel for processors, else in plain torch, tap by tap."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning import backends


def maxplus_int16(x: Tensor, w: Tensor) -> Tensor:
    """max_j x[:, j] + w[j]: x (samples, taps), w (taps, out), both int16; the caller knows that no sum overflows."""
    if backends.current(x.device) == "numba":
        from morphlightning.ops.cpu import integer
        from morphlightning.ops.cpu.workers import KernelError

        try:
            return integer.forward(x.contiguous(), w.contiguous())
        except KernelError as error:
            backends.fall_back("numba", str(error))
    y = x.new_full((len(x), w.shape[1]), torch.iinfo(torch.int16).min)
    for tap, row in zip(x.unbind(1), w, strict=True):
        y = torch.maximum(y, tap[:, None] + row)
    return y
