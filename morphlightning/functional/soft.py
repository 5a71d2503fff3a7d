r"""Soft operators: log-sum-exp at inverse temperature beta in place of the maximum.

:math:`\max_j s_j \le \frac1\beta \log\sum_j e^{\beta s_j} \le \max_j s_j + \frac{\log n}{\beta}`, so the hard operators
are the limit of large beta. Computed as one product of exponentials (``precision="bfloat16"`` rounds its factors), and
in other ways where that is lost: no overflow at any beta, -inf weights have no share. See docs/conventions.md, "Soft
operators".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Unpack, cast, get_args

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.checks import check_dense
from morphlightning.functional.windowing import (
    StructuringFunction,
    Windowing,
    WindowOptions,
    batched,
    check_fit,
    weights,
)
from morphlightning.ops.eager import compute_dtype
from morphlightning.ops.geometry import DENSE, DUAL_DENSE, Geometry, Window
from morphlightning.ops.soft import log_sum_exp_plus
from morphlightning.ops.soft.product import Precision


def check_precision(where: str, precision: str) -> Precision:
    """Raise ConfigError unless there is such a precision."""
    if precision not in get_args(Precision):
        raise ConfigError(f"{where}: precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    return cast(Precision, precision)


def check_merge(where: str, how: Windowing) -> None:
    """Raise ConfigError where channels are to be added."""
    if how.merge != "max":
        raise ConfigError(
            f"{where} does not take merge={how.merge!r}: log-sum-exp joins the channels of a group; add the channels "
            "of a depthwise operator"
        )


def check_beta(where: str, beta: float | Tensor) -> None:
    """Raise ConfigError unless this is one number, finite and > 0 (the value of a tensor is not looked at)."""
    if isinstance(beta, Tensor):
        if beta.ndim != 0:
            raise ConfigError(f"{where}: beta must be one number > 0, got shape {tuple(beta.shape)}")
    elif not 0 < beta < math.inf:
        raise ConfigError(f"{where}: beta must be a finite number > 0, got {beta}")


def log_sum_exp(x: Tensor, w: Tensor, beta: float | Tensor, where: Geometry, precision: Precision) -> Tensor:
    """Log-sum-exp in place of the maxima of an operator, and minus that of -x in place of the minima of a dual one.

    Not for dense operators of several groups.
    """
    dtype = compute_dtype(x, w)
    heat = torch.as_tensor(beta, dtype=dtype, device=x.device)
    inner = (-x if where.dual else x).to(dtype)  # so that a constant border is not rounded to half precision
    inside: Geometry = DENSE
    if isinstance(where, Window):
        inner, inside = where.pad(inner), replace(where.inside, dual=False)
    y = log_sum_exp_plus(inner, w, heat, inside, precision).to(x.dtype)
    return -y if where.dual else y


def _soft(where: str, x: Tensor, w: Tensor, beta: float | Tensor, axis: int, sign: int, precision: str) -> Tensor:
    check_dense(where, x, w, axis)
    check_beta(where, beta)
    geometry, how = DENSE if sign > 0 else DUAL_DENSE, check_precision(where, precision)
    rows, w = x.reshape(-1, x.shape[-1]), w if axis == 1 else w.t()
    return log_sum_exp(rows, w, beta, geometry, how).view(*x.shape[:-1], w.shape[0])


def soft_window(
    where: str,
    x: Tensor,
    b: StructuringFunction,
    rank: int,
    sign: int,
    beta: float | Tensor,
    how: Windowing,
    precision: str,
) -> Tensor:
    """Soft dilation (sign 1) or erosion (sign -1) by a window."""
    check_merge(where, how)
    images = batched(where, x, rank)
    w, groups = weights(where, b, images, rank, how.groups)
    window = how.window(tuple(w.shape[2:]), groups, reflected=sign > 0, dual=sign < 0)
    check_fit(where, images, tuple(w.shape[2:]), window)
    check_beta(where, beta)
    w = w.flip(tuple(range(2, w.ndim))) if sign > 0 else w  # a dilation reflects its window
    y = log_sum_exp(images, w, beta, window, check_precision(where, precision))
    return y if x.ndim == rank + 2 else y.squeeze(0)


def soft_dilation(x: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    r"""Soft dilation :math:`y_i = \frac1\beta \log \sum_j e^{\beta (x_j + w_{ij})}`.

    Args:
        x: Input, shape ``(..., in)``.
        w: Weights, shape ``(out, in)``; -inf marks a missing weight.
        beta: Inverse temperature, > 0; a number or a tensor without axes. No gradient flows to it.
        precision: ``"full"``, or ``"bfloat16"`` for products whose factors are rounded to bfloat16: the error grows to
            3 / (255 beta) at most, as derived in docs/conventions.md.

    Returns:
        Shape ``(..., out)``, dtype of x; at least :func:`dilation`, at most that plus log(in) / beta.

    Raises:
        ShapeError: The last axis of x does not fit w.
        DtypeError: x or w is not floating-point.
        ConfigError: beta is not one number, or not a finite number > 0 (not checked where it is a tensor); no such
            precision.

    Source: Maslov dequantization; bounds and errors are derived in docs/conventions.md, "Soft operators".
    """
    return _soft("soft_dilation", x, w, beta, 1, 1, precision)


def soft_erosion(x: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    """Soft erosion ``-soft_dilation(-x, w, beta)``; arguments as for :func:`soft_dilation`."""
    return _soft("soft_erosion", x, w, beta, 1, -1, precision)


def soft_adjoint_erosion(y: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    """Soft :func:`adjoint_erosion`: (..., out) to (..., in); arguments as for :func:`soft_dilation`."""
    return _soft("soft_adjoint_erosion", y, w, beta, 0, -1, precision)


def soft_adjoint_dilation(y: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    """Soft :func:`adjoint_dilation`: (..., out) to (..., in); arguments as for :func:`soft_dilation`."""
    return _soft("soft_adjoint_dilation", y, w, beta, 0, 1, precision)


def soft_opening(x: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    """``soft_adjoint_dilation(soft_erosion(x))``: tends to the opening; idempotent only in the limit."""
    return soft_adjoint_dilation(soft_erosion(x, w, beta, precision=precision), w, beta, precision=precision)


def soft_closing(x: Tensor, w: Tensor, beta: float | Tensor = 1.0, *, precision: str = "full") -> Tensor:
    """``soft_adjoint_erosion(soft_dilation(x))``: tends to the closing; idempotent only in the limit."""
    return soft_adjoint_erosion(soft_dilation(x, w, beta, precision=precision), w, beta, precision=precision)


def soft_dilation1d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    r"""Soft dilation :math:`\frac1\beta \log \sum_{c,z} e^{\beta (f_c(p - z) + b_c(z))}` of signals.

    Args:
        x: Input, (batch, channels, length) or without the batch axis.
        b: Structuring function, in the forms that :func:`dilation1d` takes.
        beta: As for :func:`soft_dilation`.
        precision: As for :func:`soft_dilation`.
        **options: Those of :func:`dilation1d` but ``merge="sum"``.

    Returns:
        (batch, out, length / stride), dtype of x; at least :func:`dilation1d`, at most that plus log(n) / beta, n the
        number of taps that meet the image.

    Raises:
        ShapeError: b does not fit the channels of x, or the window its extent.
        DtypeError: x or b is not floating-point.
        ConfigError: A wrong option, beta or precision.

    Source: derived in docs/conventions.md, "Soft operators".
    """
    return soft_window("soft_dilation1d", x, b, 1, 1, beta, Windowing(**options), precision)


def soft_dilation2d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    """Soft dilation of images; as :func:`soft_dilation1d`."""
    return soft_window("soft_dilation2d", x, b, 2, 1, beta, Windowing(**options), precision)


def soft_dilation3d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    """Soft dilation of volumes; as :func:`soft_dilation1d`."""
    return soft_window("soft_dilation3d", x, b, 3, 1, beta, Windowing(**options), precision)


def soft_erosion1d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    r"""Soft erosion :math:`-\frac1\beta \log \sum_{c,z} e^{-\beta (f_c(p + z) - b_c(z))}` of signals.

    Arguments as for :func:`soft_dilation1d`; at most :func:`erosion1d`, at least that minus log(n) / beta.
    """
    return soft_window("soft_erosion1d", x, b, 1, -1, beta, Windowing(**options), precision)


def soft_erosion2d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    """Soft erosion of images; as :func:`soft_erosion1d`."""
    return soft_window("soft_erosion2d", x, b, 2, -1, beta, Windowing(**options), precision)


def soft_erosion3d(
    x: Tensor,
    b: StructuringFunction,
    beta: float | Tensor = 1.0,
    *,
    precision: str = "full",
    **options: Unpack[WindowOptions],
) -> Tensor:
    """Soft erosion of volumes; as :func:`soft_erosion1d`."""
    return soft_window("soft_erosion3d", x, b, 3, -1, beta, Windowing(**options), precision)
