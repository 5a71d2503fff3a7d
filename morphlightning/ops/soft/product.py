"""Log-sum-exp as one product of exponentials: a matrix product for dense operators, a convolution for windows.

With shifts m = max_j x_j of each sample (and group) and n_i = max_j w_ij of each output,

    sum_j e^{beta (x_j + w_ij)} = e^{beta (m + n_i)} S_i,    S_i = sum_j e^{beta (x_j - m)} e^{beta (w_ij - n_i)},

both factors at most 1. What the product loses, and when it may be trusted, is derived in docs/conventions.md, "Soft
operators".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from morphlightning.ops.geometry import Geometry, Window

Precision = Literal["full", "bfloat16"]


@dataclass
class Product:
    """The factors and S of one call; bfloat16 factors make bfloat16 products, S has the dtype of scores."""

    ex: Tensor
    ew: Tensor
    total: Tensor
    geometry: Geometry

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of scores."""
        return self.total.dtype

    def forget(self, rows: Tensor) -> None:
        """Let these samples send nothing, whatever is in them."""
        self.ex[rows], self.total[rows] = 0, math.inf

    def pull(self, gy: Tensor, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message to the candidates by their shares: gradients for x and w; what is not wanted is empty."""
        gx, gw = _adjoint(gy / self.total, self.ex, self.ew, self.geometry, want_x, want_w)
        return gx.mul_(self.ex) if want_x else gx, gw.mul_(self.ew) if want_w else gw

    def pull_again(self, ux: Tensor, uw: Tensor, gy: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adjoint derivative of :meth:`pull` at cotangents ux and uw, for gy, x and w."""
        ex, ew, sent = self.ex.to(gy.dtype), self.ew.to(gy.dtype), gy / self.total
        mean = (_product(ex * ux, ew, self.geometry) + _product(ex, ew * uw, self.geometry)).div_(self.total)
        own = _adjoint(sent, ex, ew, self.geometry)
        cross = _adjoint(sent, ex * ux, ew * uw, self.geometry)
        drawn = _adjoint(sent * mean, ex, ew, self.geometry)
        hx, hw = (
            (beta * e * (u * a + c - d)) for e, u, a, c, d in zip((ex, ew), (ux, uw), own, cross, drawn, strict=True)
        )
        return mean, hx, hw


def multiply(x: Tensor, w: Tensor, beta: Tensor, geometry: Geometry, precision: Precision) -> tuple[Tensor, Product]:
    """Log-sum-exp by the product, whether it is to be trusted or not; x and w contiguous and of one dtype."""
    groups = geometry.groups
    mx, ex = _exponentials(x.view(len(x), groups, math.prod(x.shape[1:]) // groups), beta)
    mw, ew = _exponentials(w.view(groups, w.shape[0] // groups, -1), beta)
    ex, ew = ex.view(x.shape), ew.view(w.shape)
    if precision == "bfloat16":
        ex, ew = ex.bfloat16(), ew.bfloat16()
    total = _product(ex, ew, geometry).to(x.dtype)
    top = (mx + mw.squeeze(-1)).view(len(x), w.shape[0], *(1,) * (total.ndim - 2))
    return torch.addcdiv(top, total.log(), beta), Product(ex, ew, total, geometry)


def candidates(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """The number of candidates above -inf of each output."""
    return _product((x > -math.inf).to(x.dtype), (w > -math.inf).to(x.dtype), geometry)


def _exponentials(t: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum m over the last axis (0 where all is -inf) and e^{beta (t - m)}."""
    top = t.amax(-1, keepdim=True)
    top.masked_fill_(top == -math.inf, 0)
    return top, (t - top).mul_(beta).exp_()


def _product(a: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
    if isinstance(geometry, Window):
        return torch.convolution(a, v, None, *_convolution(geometry))
    return a @ v.t()


def _adjoint(
    r: Tensor, a: Tensor, v: Tensor, geometry: Geometry, want_a: bool = True, want_v: bool = True
) -> tuple[Tensor, Tensor]:
    """The gradients of ⟨r, product(a, v)⟩ for a and v, in the dtype of r; empty where not wanted."""
    dtype, r = r.dtype, r.to(a.dtype)
    ga, gv = r.new_empty(0), r.new_empty(0)
    if isinstance(geometry, Window):
        want = (want_a, want_v, False)
        to_a, to_v, _ = torch.ops.aten.convolution_backward(r, a, v, None, *_convolution(geometry), want)
        ga, gv = to_a if want_a else ga, to_v if want_v else gv
    else:
        ga, gv = r @ v if want_a else ga, r.t() @ a if want_v else gv
    return ga.to(dtype), gv.to(dtype)


def _convolution(window: Window) -> tuple[Any, ...]:
    """Arguments of torch's convolutions from the stride on; the border stands in the image already."""
    nowhere = (0,) * len(window.stride)
    return window.stride, nowhere, window.spacing, False, nowhere, window.groups


_FLOAT32 = ("none", "ieee")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products as they are asked for: no autocast, no TF32.

    The trust rule needs an error relative to each S. Convolutions by Fourier or Winograd transforms, among which cuDNN
    chooses, have one relative to the largest S around; so cuDNN is left out.
    """
    backends: Any = torch.backends
    wanted: list[tuple[Any, str, tuple[Any, ...]]] = []
    if device.type == "cpu":
        wanted = [
            (backends.mkldnn.matmul, "fp32_precision", _FLOAT32),
            (backends.mkldnn.conv, "fp32_precision", _FLOAT32),
        ]
    elif device.type == "cuda":
        wanted = [(backends.cuda.matmul, "fp32_precision", _FLOAT32), (backends.cudnn, "enabled", (False,))]
        wanted.append((backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", (False,)))
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        for owner, name, good in wanted:
            found = getattr(owner, name)
            if found not in good:
                stack.callback(setattr, owner, name, found)
                setattr(owner, name, good[-1])
        yield
