"""Log-sum-exp at any beta: a product in the dtype of scores, in float64 where that is lost, else from scores.

Each sample stands on one rung; derivatives are taken where the value was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from morphlightning.ops import eager
from morphlightning.ops.geometry import Geometry, Window
from morphlightning.ops.soft.direct import Direct, direct
from morphlightning.ops.soft.product import Precision, Product, candidates, exact_products, multiply

FIRST, DOUBLE, DIRECT = 0, 1, 2
ROOM = 8.0
"""A float32 product is trusted where y is at most so many |y| (or so many, if |y| < 1) below the sum of the shifts."""


def value(
    x: Tensor, w: Tensor, beta: Tensor, geometry: Geometry, precision: Precision
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give y; what its derivatives need of the first product (two factors and S); and the rung of each sample."""
    dtype = eager.compute_dtype(x, w)
    wide_x, wide_w, beta = x.to(dtype).contiguous(), w.to(dtype).contiguous(), beta.to(dtype)
    with exact_products(x.device):
        y, product = multiply(wide_x, wide_w, beta, geometry, precision)
        rung = torch.full((len(x),), FIRST, dtype=torch.uint8, device=x.device)
        failed = _failed(y, product, wide_x, wide_w, beta)
        if len(failed):
            y[failed], rung[failed] = _descend(wide_x[failed], wide_w, beta, geometry)
            product.forget(failed)
    return y.to(x.dtype), product.ex, product.ew, product.total, rung


def gradient(
    gy: Tensor, x: Tensor, w: Tensor, beta: Tensor, first: Product, rung: Tensor, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    """Every candidate receives its softmax share of the message; an infinite output sends nothing.

    What is not wanted is empty.
    """
    dtype, rungs = first.total.dtype, _taken(rung)
    with exact_products(x.device):
        if rungs <= {DOUBLE, DIRECT}:  # then infinite weights may be in the first product's factors
            gx, gw = (t.new_zeros(t.shape if want else 0, dtype=dtype) for t, want in ((x, want_x), (w, want_w)))
        else:
            gx, gw = first.pull(gy.to(dtype), want_x, want_w)
        for rows, solver in _lower(x, w, beta, first, rung, rungs):
            to_x, to_w = solver.pull(gy[rows].to(solver.dtype))
            if want_x:
                gx[rows] = to_x.to(dtype)
            if want_w:
                gw += to_w
    return gx.to(x.dtype), gw.to(w.dtype)


def second(
    ux: Tensor, uw: Tensor, gy: Tensor, x: Tensor, w: Tensor, beta: Tensor, first: Product, rung: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The adjoint derivative of :func:`gradient` at cotangents ux and uw, for gy, x and w."""
    dtype, rungs = first.total.dtype, _taken(rung)
    with exact_products(x.device):
        if rungs <= {DOUBLE, DIRECT}:
            mean, hx, hw = (t.new_zeros(t.shape, dtype=dtype) for t in (gy, x, w))
        else:
            mean, hx, hw = first.pull_again(*(t.to(dtype) for t in (ux, uw, gy, beta)))
        for rows, solver in _lower(x, w, beta, first, rung, rungs):
            given = (t.to(solver.dtype) for t in (ux[rows], uw, gy[rows], beta))
            part, to_x, to_w = solver.pull_again(*given)
            mean[rows], hx[rows] = part.to(dtype), to_x.to(dtype)
            hw += to_w
    return mean.to(gy.dtype), hx.to(x.dtype), hw.to(w.dtype)


def _taken(rung: Tensor) -> set[int]:
    return {FIRST} if not bool(rung.any()) else set(rung.unique().tolist())


def _descend(x: Tensor, w: Tensor, beta: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Values and rungs of samples whose first product failed."""
    rung = torch.full((len(x),), DIRECT, dtype=torch.uint8, device=x.device)
    if x.dtype == torch.float64:
        return direct(x, w, beta, geometry).value(), rung
    double = x.double(), w.double(), beta.double()
    y, product = multiply(*double, geometry, "full")
    failed = _failed(y, product, *double)
    rung[:] = DOUBLE
    if len(failed):
        y[failed] = direct(x[failed], w, beta, geometry).value().double()
        rung[failed] = DIRECT
    return y.to(x.dtype), rung


def _lower(
    x: Tensor, w: Tensor, beta: Tensor, first: Product, rung: Tensor, rungs: set[int]
) -> Iterator[tuple[Tensor, Product | Direct]]:
    """Samples below the first rung, and what solves for them."""
    for level, dtype in ((DOUBLE, torch.float64), (DIRECT, first.total.dtype)):
        if level in rungs:
            rows = (rung == level).nonzero()[:, 0]
            given = x[rows].to(dtype).contiguous(), w.to(dtype).contiguous(), beta.to(dtype), first.geometry
            yield rows, multiply(*given, "full")[1] if level == DOUBLE else direct(*given)


def _failed(y: Tensor, product: Product, x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """The samples whose product is not to be trusted; outputs without candidates are made to send nothing."""
    total, geometry = product.total, product.geometry
    limits = torch.finfo(torch.float32 if product.ex.dtype == torch.bfloat16 else x.dtype)  # of one range
    least = geometry.fan_in(w.shape) * limits.tiny / limits.eps
    single = x.dtype == torch.float32
    enough = beta.mul(-ROOM).exp_().clamp_min_(least) if single else least
    if total.numel() == 0 or bool(total.amin() > enough):
        return torch.empty(0, dtype=torch.int64, device=x.device)
    good = total > least
    if single:
        good &= total.log().div_(-beta) <= ROOM * _scale(y, geometry)
    empty = total == 0
    if bool(empty.any()):
        empty &= candidates(x, w, geometry) == 0
        total.masked_fill_(empty, math.inf)
        good |= empty
    return (~good).flatten(1).any(1).nonzero()[:, 0]


def _scale(y: Tensor, geometry: Geometry) -> Tensor:
    """What errors are measured by, at least 1: each output, or the largest of its image, which shares one shift."""
    size = y.abs()
    if isinstance(geometry, Window):
        size = size.masked_fill(size == math.inf, 0).flatten(1).amax(1).view(-1, *(1,) * (y.ndim - 1))
    return size.clamp_min(1)
