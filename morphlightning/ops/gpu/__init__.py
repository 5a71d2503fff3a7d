"""The triton backend: kernels for CUDA devices, equal to the eager backend in values and winners.

Every sum runs in a fixed order, without float atomics. Triton is imported when the first kernel is needed.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from morphlightning.ops import eager
from morphlightning.ops.active import ActiveGraph, Call
from morphlightning.ops.geometry import Dense, Geometry


def unavailable() -> str:
    """Why the backend cannot be used here, or an empty string."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no CUDA device"
    return ""


def value(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`morphlightning.ops.eager.value`."""
    with torch.cuda.device_of(x):
        return _for(geometry, x, w).value(x, w, geometry)  # type: ignore[no-any-return]


def indices(x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`morphlightning.ops.eager.indices`."""
    with torch.cuda.device_of(x):
        return _for(geometry, x, w).indices(x, w, geometry, gap)  # type: ignore[no-any-return]


def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry, want_x: bool = True, want_w: bool = True
) -> tuple[Tensor, Tensor]:
    """As :func:`morphlightning.ops.eager.scatter`."""
    with torch.cuda.device_of(gy):
        return _for(geometry, gy).scatter(gy, arg, x, w, geometry, want_x, want_w)  # type: ignore[no-any-return]


def touches(gy: Tensor, arg: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
    """As :func:`morphlightning.ops.eager.touches`."""
    if not gy.numel():
        return eager.touches(gy, arg, w, geometry)
    from morphlightning.ops.gpu import sums

    with torch.cuda.device_of(gy):
        return sums.to_weights((gy != 0).to(gy.dtype), arg, w)


def active(x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, eps: float) -> ActiveGraph:
    """As :func:`morphlightning.ops.eager.active`, with kernels where all see all."""
    if not isinstance(geometry, Dense) or not x.numel():
        return eager.active(x, w, arg, gap, geometry, eps)
    from morphlightning.ops.gpu.ties import DenseGraph

    return DenseGraph(Call(x, w, arg, gap, geometry), eps)


def project(
    u: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, tau: float, count: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`morphlightning.ops.eager.project`, with kernels where all see all."""
    if not isinstance(geometry, Dense) or not x.numel():
        return eager.project(u, x, w, arg, gap, geometry, tau, count)
    from morphlightning.ops.gpu import ties

    return ties.project(u, x, w, arg, geometry, tau, count)


def _for(geometry: Geometry, x: Tensor, w: Tensor | None = None) -> Any:
    """The module with the kernels; eager for empty tensors, for which a grid would be empty."""
    if not x.numel() or (w is not None and not w.numel()):
        return eager
    return import_module(f"{__name__}.{'dense' if isinstance(geometry, Dense) else 'window'}")
