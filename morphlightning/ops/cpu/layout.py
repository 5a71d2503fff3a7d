"""How windows, strides and borders of any rank become offsets into a scratch image: tables made once a shape.

Everything has three spatial axes here; signals and images get leading axes of one element. A scratch image holds, for
each channel and each tap along the depth, the rows of one strip, split into phases: position a of phase p is element
stride * a + p of the padded row, so that a vector of neighbouring outputs reads neighbours whatever the stride.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.ops.cpu.workers import kernel
from morphlightning.ops.geometry import Window

STRIP, NARROW_STRIP = 1024, 4096
"""Output positions of a strip, about, where several outputs share it and where one has it for itself: accumulators and
scratch image stay in the cache, and few rows are copied twice."""
TILE = 4
"""Outputs of a group that one tile computes together, where there are as many."""


(
    GROUPS, CHANNELS, OUTS, TAPS, DEPTH, HEIGHT, WIDTH, OUT_Z, OUT_Y, OUT_X, SIZE_Z, SIZE_Y, SIZE_X,
    STRIDE_Z, STRIDE_Y, STRIDE_X, BEFORE_Z, BEFORE_Y, BEFORE_X, REACH_Z, REACH_Y, REACH_X,
    SPACING_Z, SPACING_Y, SPACING_X, ROWS, PITCH, SHIFT, PHASES, SCRATCH, END_Z, END_Y, END_X, CROSSES, COUNT,
) = range(35)  # fmt: skip
"""Where numbers stand in :attr:`Layout.sizes`; the first four describe one group."""


class Layout(NamedTuple):
    """Tables of one windowed operator.

    Attributes:
        sizes: Numbers by the names above. ROWS: rows of outputs in a strip; PITCH: distance between rows of the scratch
            image; SHIFT: rows that a strip sees beyond as many as it has outputs; PHASES: places for phases along
            an axis; SCRATCH: numbers in the scratch image; END: where each axis ends in ``sources``; CROSSES: whether
            something outside the image can win.
        offsets: Where each tap starts in the scratch image, int32 (taps,).
        phases: Phases along rows and columns that taps use, -1 behind them: (2, PHASES).
        sources: The input position of each padded position, -1 outside: the three axes one after another.
        relative: Distance of each tap's cell from that of the first tap, where all are inside (taps,).
        steps: Channel, and padded distance along the axes, of each tap: (taps, 4).
    """

    sizes: Tensor
    offsets: Tensor
    phases: Tensor
    sources: Tensor
    relative: Tensor
    steps: Tensor


@lru_cache(maxsize=256)
def layout_of(x: torch.Size, w: torch.Size, geometry: Window) -> Layout:
    """The layout for inputs and weights of these shapes."""
    missing = 5 - len(x)

    def three(sizes: tuple[int, ...], fill: int = 1) -> tuple[int, ...]:
        return (fill,) * missing + tuple(sizes)

    extent, size, out = three(x[2:]), three(w[2:]), three(geometry.extents(x, w))
    stride, spacing = three(geometry.stride), three(geometry.spacing)
    before, after = three(geometry.before, 0), three(geometry.after, 0)
    reach = [[k * d for k in range(n)] for n, d in zip(size, spacing, strict=True)]
    used = [sorted({r % s for r in axis}) for axis, s in zip(reach[1:], stride[1:], strict=True)]
    strip = STRIP if w[0] // geometry.groups >= TILE else NARROW_STRIP
    rows = max(1, min(out[1], strip // max(1, out[2])))
    shift, pitch = reach[1][-1] // stride[1], out[2] + reach[2][-1] // stride[2]
    block = (rows + shift) * pitch
    depth_block = len(used[0]) * len(used[1]) * block

    def offset(c: int, k: int, y: int, col: int) -> int:
        phase = used[0].index(y % stride[1]) * len(used[1]) + used[1].index(col % stride[2])
        return (c * size[0] + k) * depth_block + phase * block + y // stride[1] * pitch + col // stride[2]

    channels, (depth, height, width) = w[1], extent
    taps = list(itertools.product(range(channels), range(size[0]), reach[1], reach[2]))
    steps = [(c, reach[0][k], y, col) for c, k, y, col in taps]
    relative = [((c * depth + z) * height + y) * width + col for c, z, y, col in steps]
    sources = [_sources(*axis, geometry) for axis in zip(extent, before, after, strict=True)]
    most = max(map(len, used))
    sizes = [
        geometry.groups, channels, w[0] // geometry.groups, len(taps), *extent, *out, *size, *stride, *before,
        *(axis[-1] for axis in reach), *spacing, rows, pitch, shift, most, channels * size[0] * depth_block,
        *itertools.accumulate(map(len, sources)), int(geometry.border != "neutral" and any(before + after)),
    ]  # fmt: skip
    return Layout(
        sizes=torch.tensor(sizes),
        offsets=torch.tensor([offset(*tap) for tap in taps], dtype=torch.int32),
        phases=torch.tensor([axis + [-1] * (most - len(axis)) for axis in used]),
        sources=torch.cat(sources),
        relative=torch.tensor(relative),
        steps=torch.tensor(steps),
    )


def _sources(extent: int, before: int, after: int, geometry: Window) -> Tensor:
    """The input position behind each padded position of one axis; -1 outside."""
    border = geometry.border if geometry.wraps else "constant"
    axis = Window((1,), (1,), (before,), (after,), 1, border, -1.0)
    return axis.pad(torch.arange(extent, dtype=torch.float64).view(1, 1, -1)).flatten().long()


def fill_of(geometry: Window) -> float:
    """What lies outside the image, beside x or -x."""
    return geometry.fill if geometry.border == "constant" else -math.inf


@kernel
def outside(start, before, reach, extent):
    """Whether a window that begins at a padded position reaches outside the image along one axis."""
    return start < before or start + reach >= before + extent
