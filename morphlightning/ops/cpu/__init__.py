"""The numba backend: kernels for processors, compiled on first use without a compiler on the machine.

``eager`` specifies every function. What there is no kernel for goes there; so does everything once a kernel could not
be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops import eager
from morphlightning.ops.active import ActiveGraph, Call
from morphlightning.ops.cpu import dense, dense_backward, flat, window, window_backward
from morphlightning.ops.cpu.active import graph_of
from morphlightning.ops.cpu.workers import KernelError
from morphlightning.ops.geometry import Dense, Geometry

P = ParamSpec("P")
R = TypeVar("R")


def unavailable() -> str:
    """Why the backend cannot be used; empty where it can."""
    return ""


def _or_eager(function: Callable[P, R]) -> Callable[P, R]:
    """Compute with eager from the first kernel on that does not compile."""
    reference: Callable[P, R] = getattr(eager, function.__name__)

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KernelError as error:
            backends.fall_back("numba", str(error))
            return reference(*args, **kwargs)

    return run


def _sign(geometry: Geometry) -> int:
    return -1 if geometry.dual else 1


def _operands(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    dtype = eager.compute_dtype(x, w)
    return x.to(dtype).contiguous(), w.to(dtype).contiguous()


def _forward(x: Tensor, w: Tensor, geometry: Geometry, mode: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, w = _operands(x, w)
    if isinstance(geometry, Dense):
        return dense.forward(x, w, geometry.groups, _sign(geometry), mode)
    if geometry.flat and geometry.border == "neutral" and mode < 2:
        return *flat.forward(x, w, geometry, mode), None
    return window.forward(x, w, geometry, mode)


@_or_eager
def value(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Maxima alone."""
    return _forward(x, w, geometry, 0)[0].to(x.dtype)


@_or_eager
def indices(x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, winners and, on request, gaps to the runner-up."""
    y, arg, gaps = _forward(x, w, geometry, 2 if gap else 1)
    assert arg is not None
    return y.to(x.dtype), arg, y.new_empty(0) if gaps is None else gaps


@_or_eager
def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry, want_x: bool = True, want_w: bool = True
) -> tuple[Tensor, Tensor]:
    """Messages to winners."""
    gy, arg, sign = gy.contiguous(), arg.contiguous(), _sign(geometry)
    if isinstance(geometry, Dense):
        return dense_backward.scatter(gy, arg, w[1], geometry.groups, sign, want_x, want_w)
    return window_backward.scatter(gy, arg, x, w, geometry, sign, want_x, want_w)


@_or_eager
def touches(gy: Tensor, arg: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
    """Number of messages that each weight won."""
    gy, arg = gy.contiguous(), arg.contiguous()
    if isinstance(geometry, Dense):
        return dense_backward.scatter(gy, arg, w[1], geometry.groups, 1, False, True, counting=True)[1]
    return window_backward.touches(gy, arg, w)


@_or_eager
def active(x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, eps: float) -> ActiveGraph:
    """The graph of candidates within eps of their maximum."""
    return graph_of(Call(x, w, arg, gap, geometry), eps)


@_or_eager
def project(
    u: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, tau: float, count: bool
) -> tuple[Tensor, Tensor]:
    """Pseudo-gradients that take each maximum to y - tau u, and touch counts."""
    if not isinstance(geometry, Dense):
        return eager.project(u, x, w, arg, gap, geometry, tau, count)
    x, w = _operands(x, w)
    operands = u.to(x.dtype).contiguous(), eager.bounded(x), w, arg.contiguous(), gap.contiguous()
    gw, touched = dense_backward.project(*operands, geometry.groups, tau)
    return gw, touched if count else touched.new_empty(0)
