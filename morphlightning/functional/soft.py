r"""Soft dense operators: log-sum-exp at inverse temperature beta in place of the maximum.

:math:`\max_j s_j \le \frac1\beta \log\sum_j e^{\beta s_j} \le \max_j s_j + \frac{\log n}{\beta}`, so the hard operators
are the limit of large beta. Computed from shifted scores: no overflow at any beta, -inf weights have no share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.checks import check_dense
from morphlightning.ops.soft import log_sum_exp_plus


def _soft(where: str, x: Tensor, w: Tensor, beta: float | Tensor, axis: int, sign: int) -> Tensor:
    check_dense(where, x, w, axis)
    if isinstance(beta, Tensor):
        if beta.ndim != 0:
            raise ConfigError(f"{where}: beta must be one number > 0, got shape {tuple(beta.shape)}")
    elif not 0 < beta < math.inf:
        raise ConfigError(f"{where}: beta must be a finite number > 0, got {beta}")
    beta = torch.as_tensor(beta, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    weights = w if axis == 1 else w.t()
    y = log_sum_exp_plus(sign * x.reshape(-1, x.shape[-1]), weights, beta)
    return sign * y.view(*x.shape[:-1], weights.shape[0])


def soft_dilation(x: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    r"""Soft dilation :math:`y_i = \frac1\beta \log \sum_j e^{\beta (x_j + w_{ij})}`.

    Args:
        x: Input, shape ``(..., in)``.
        w: Weights, shape ``(out, in)``; -inf marks a missing weight.
        beta: Inverse temperature, > 0; a number or a tensor without axes. No gradient flows to it.

    Returns:
        Shape ``(..., out)``, dtype of x; at least :func:`dilation`, at most that plus log(in) / beta.

    Raises:
        ShapeError: The last axis of x does not fit w.
        DtypeError: x or w is not floating-point.
        ConfigError: beta is not one number, or not a finite number > 0 (not checked where it is a tensor).

    Source: Maslov dequantization; the bound is derived in docs/conventions.md, "Soft operators".
    """
    return _soft("soft_dilation", x, w, beta, 1, 1)


def soft_erosion(x: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Soft erosion ``-soft_dilation(-x, w, beta)``; arguments as for :func:`soft_dilation`."""
    return _soft("soft_erosion", x, w, beta, 1, -1)


def soft_adjoint_erosion(y: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Soft :func:`adjoint_erosion`: (..., out) to (..., in); arguments as for :func:`soft_dilation`."""
    return _soft("soft_adjoint_erosion", y, w, beta, 0, -1)


def soft_adjoint_dilation(y: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Soft :func:`adjoint_dilation`: (..., out) to (..., in); arguments as for :func:`soft_dilation`."""
    return _soft("soft_adjoint_dilation", y, w, beta, 0, 1)


def soft_opening(x: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """``soft_adjoint_dilation(soft_erosion(x))``: tends to the opening; idempotent only in the limit."""
    return soft_adjoint_dilation(soft_erosion(x, w, beta), w, beta)


def soft_closing(x: Tensor, w: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """``soft_adjoint_erosion(soft_dilation(x))``: tends to the closing; idempotent only in the limit."""
    return soft_adjoint_erosion(soft_dilation(x, w, beta), w, beta)
