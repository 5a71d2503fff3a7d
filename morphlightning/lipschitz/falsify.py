"""A search for pairs of inputs that contradict a Lipschitz constant."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.lipschitz.spec import Measured

DISTANCES = (1.0, 0.1, 0.01)
_ORDERS = {"l2": 2.0, "linf": math.inf}


class SteepestPair(NamedTuple):
    """Two inputs that a module moves apart.

    Attributes:
        ratio: |f(x) - f(y)| / |x - y|, in float64; no Lipschitz constant is smaller.
        x: One input, without a batch axis.
        y: The other.
    """

    ratio: float
    x: Tensor
    y: Tensor


def falsify(
    module: nn.Module, x: Tensor, norm_in: Measured = "l2", norm_out: Measured | None = None, steps: int = 10
) -> SteepestPair:
    r"""The steepest pair of inputs that ascent from pairs of data finds: a lower bound of every Lipschitz constant.

    A pair keeps its x and its distance t; with the differences :math:`v = f(y) - f(x)`, the vector u of dual norm 1
    with :math:`\langle u, v\rangle = \|v\|` and the gradient :math:`g = J_f(y)^T u`, each step sets y to x + t d with
    the d of norm 1 that maximizes :math:`\langle g, d\rangle`: d is g / \|g\| in l2 and sign g in linf. For linear maps
    in l2 this is the power iteration. Starts are neighbouring samples, and points a tenth and a hundredth of the way.

    Everything is computed in float64, of a copy in evaluation mode; random states are left alone.

    Args:
        module: A map of (batch, ...) that treats samples by themselves.
        x: Data, (batch, ...).
        norm_in: Of inputs, over all numbers of a sample.
        norm_out: Of outputs; that of inputs if None.
        steps: Steps from each start.

    Raises:
        ShapeError: No samples.
        DtypeError: x is not floating-point.

    Source: derived here, from the power method for matrix norms (Boyd 1974; Higham, "Estimating the matrix p-norm").
    """
    check_real("falsify", x=x)
    if x.ndim < 2 or not x.numel():
        raise ShapeError(f"falsify: x has shape {tuple(x.shape)}, expected a batch of samples (batch, ...)")
    out = norm_out or norm_in
    with torch.inference_mode(False), torch.enable_grad():
        module = copy.deepcopy(module).double().eval().requires_grad_(False)
        near, d, t = _starts(x.detach().clone().double(), norm_in)
        best = SteepestPair(0.0, near[0], near[0])
        with torch.no_grad():
            fixed = module(near)
        for step in range(steps + 1):
            y = (near + t * d).requires_grad_(step < steps)
            change = (module(y) - fixed).flatten(1)
            ratios = change.detach().norm(_ORDERS[out], 1) / (y - near).detach().flatten(1).norm(_ORDERS[norm_in], 1)
            found = int(ratios.nan_to_num(-1.0).argmax())
            if ratios[found] > best.ratio:
                best = SteepestPair(float(ratios[found]), near[found].detach(), y[found].detach())
            if step < steps:
                (gradient,) = torch.autograd.grad((change * _dual(change.detach(), out)).sum(), y)
                d = _best_direction(gradient, d, norm_in)
    return best


def _starts(x: Tensor, norm: Measured) -> tuple[Tensor, Tensor, Tensor]:
    """Points, directions of norm 1, and distances, each sample as often as there are distances."""
    apart = x.roll(1, 0) - x
    length = _length(apart, norm)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device) - 0.5
    direction = torch.where(length > 0, apart / length, noise / _length(noise, norm))
    distance = torch.where(length > 0, length, 1.0)
    return (
        torch.cat([x] * len(DISTANCES)),
        torch.cat([direction] * len(DISTANCES)),
        torch.cat([distance * share for share in DISTANCES]),
    )


def _dual(v: Tensor, norm: Measured) -> Tensor:
    """U of dual norm 1 with <u, v> = |v|, for rows."""
    if norm == "l2":
        return F.normalize(v, dim=1, eps=torch.finfo(v.dtype).tiny)
    largest = v.abs().argmax(1, keepdim=True)
    return torch.zeros_like(v).scatter(1, largest, v.gather(1, largest).sign())


def _best_direction(g: Tensor, d: Tensor, norm: Measured) -> Tensor:
    """D of norm 1 with the largest <g, d>; the old one where g says nothing."""
    length = _length(g, "l2")
    best = g / length if norm == "l2" else g.sign()
    return torch.where(length > 0, best, d)


def _length(x: Tensor, norm: Measured) -> Tensor:
    """The norms of samples, (batch, 1, ...)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), _ORDERS[norm], 1)
    return length.view(-1, *(1,) * (x.ndim - 1))
