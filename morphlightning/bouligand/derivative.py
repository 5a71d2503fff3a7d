"""Active sets and one-sided directional derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

from torch import Tensor, nn

from morphlightning.bouligand.ray import Directions, Ray, check_direction, module_ray
from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional import dilation
from morphlightning.functional.checks import check_dense
from morphlightning.ops.eager import bounded, compute_dtype

Operator = Callable[..., Tensor]


def check_eps(where: str, eps: float) -> None:
    """Raise ConfigError unless eps is a number >= 0."""
    if not 0 <= eps < math.inf:
        raise ConfigError(f"{where}: eps must be a finite number >= 0, got {eps}")


def active_set(x: Tensor, w: Tensor, eps: float = 0.0) -> Tensor:
    r"""Who attains the maximum of a dense dilation: :math:`J_i = \{j : y_i - (x_j + w_{ij}) \le \epsilon\}`.

    For inspection: the result has one entry a weight and sample.

    Args:
        x: Input, shape ``(..., in)``.
        w: Weights, shape ``(out, in)``; -inf marks a missing weight, which is never active.
        eps: How far below the maximum still counts.

    Returns:
        Boolean, shape ``(..., out, in)``. A row without a finite candidate is empty.

    Raises:
        ConfigError: eps is negative or not finite.
        ShapeError: The last axis of x does not fit w.
    """
    check_eps("active_set", eps)
    check_dense("active_set", x, w, 1)
    dtype = compute_dtype(x, w)
    scores = bounded(x.to(dtype))[..., None, :] + w.to(dtype)
    return (scores >= scores.amax(-1, keepdim=True) - eps) & (scores > -math.inf)


@overload
def bderivative(
    f: Tensor,
    at: Any,
    /,
    h: Tensor | None,
    v: Tensor | None = None,
    *,
    operator: Operator = dilation,
    eps: float = 0.0,
    **options: Any,
) -> Tensor: ...
@overload
def bderivative(
    f: nn.Module, at: Any, /, h: Any = None, *, params: Directions | None = None, eps: float = 0.0
) -> Any: ...
def bderivative(
    f: Any,
    at: Any,
    /,
    h: Any = None,
    v: Tensor | None = None,
    *,
    operator: Operator = dilation,
    params: Directions | None = None,
    eps: float = 0.0,
    **options: Any,
) -> Any:
    r"""The one-sided (Bouligand) derivative :math:`f'(p; d) = \lim_{t \downarrow 0} (f(p + t d) - f(p)) / t`, exactly.

    ``bderivative(x, w, h, v, operator=..., **options)`` is that of ``operator(x, w, **options)`` along h of x and v of
    w. Where maxima tie, the largest of the slopes counts: for a dilation
    :math:`y_i' = \max_{j \in J_i} h_j + v_{ij}`.

    ``bderivative(module, x, h, params={name: direction})`` is that of ``module(x)``, in the mode (training or
    evaluation) that the module is in, and leaves the module and torch's random generators as they are. Torch carries
    directions through what is smooth. Every function with kinks has its own rule: all operators of this package,
    rectifiers, clamps, absolute values, maxima, minima, max-pooling, l1 and hinge losses. The rest of those
    known to jump or have kinks are refused. What depends on data without a function that says so (``torch.where`` on a
    comparison, an index by argmax) cannot be seen: its selection counts as constant.

    Args:
        f: x, or a module.
        at: w (a size or a boolean footprint stays where it is; of a reconstruction, the mask), or the module's input,
            or a tuple of them.
        h: Direction of x, or of the module's input; None if it stays. A tuple for a tuple.
        v: Direction of w; None if it stays.
        operator: A function of :mod:`morphlightning.functional`.
        params: Directions of parameters, by qualified name.
        eps: Scores within eps of a maximum count as tied, inputs within eps of a knot as at it.
        **options: Options of the operator.

    Returns:
        The derivative, shape and dtype of the output; 0 where a maximum has no finite candidate. Of a module whose
        output is a tuple, list or dict, one of them.

    Raises:
        ShapeError: A direction has another shape than what it moves.
        ConfigError: An unknown parameter, a direction of what is no floating-point tensor, eps < 0.
        NotSupportedError: A function that jumps or has kinks and has no rule; it says in which module.

    Source: derived in docs/bouligand.md, "The derivative" and "Chain rule"; the idea that it is the right notion for
    these networks is that of Blusseau, arXiv 2403.12975.
    """
    ray = ray_of("bderivative", f, at, h, v, operator, params, eps, options)
    return ray.at(eps=eps).slope


def ray_of(
    where: str,
    f: Any,
    at: Any,
    h: Any,
    v: Tensor | None,
    operator: Operator,
    params: Directions | None,
    eps: float,
    options: dict[str, Any],
) -> Ray:
    """The ray of an operator or of a module, whichever f says, with all arguments checked."""
    check_eps(where, eps)
    if not isinstance(f, nn.Module):
        if params is not None:
            raise ConfigError(f"{where}: params belong to a module; give the direction of w as v")
        named = (("x", f, h), ("w", at, v))
        directions = [None if d is None else check_direction(where, name, of, d) for name, of, d in named]
        return Ray(where, lambda moving: operator(*moving, **options), [f, at], directions)
    if v is not None or options or operator is not dilation:
        raise ConfigError(f"{where}: a module takes h and params, no v, operator or {', '.join(options) or 'options'}")
    return module_ray(where, f, at, h, params)


def loss_slope(
    module: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    x: Any,
    target: Any,
    h: Any = None,
    params: Directions | None = None,
) -> Tensor:
    """The one-sided derivative of ``loss(module(x), target)`` along directions of the input and of parameters.

    Args:
        module: Any module that :func:`bderivative` takes.
        loss: Gives a number; smooth, or made of functions that :func:`bderivative` knows.
        x: The module's input, or a tuple of them.
        target: What the loss compares with.
        h: Direction of the input; None if it stays.
        params: Directions of parameters by qualified name.

    Returns:
        A tensor without axes.

    Raises:
        ShapeError: A direction has another shape than what it moves, or the loss is no single number.
        ConfigError: An unknown parameter.
        NotSupportedError: A function that jumps or has kinks and has no rule.
    """
    slope = module_ray("loss_slope", module, x, h, params, after=lambda y: loss(y, target)).at().slope
    if slope.ndim:
        raise ShapeError(f"loss_slope: the loss has shape {tuple(slope.shape)}, expected a single number")
    return slope  # type: ignore[no-any-return]
