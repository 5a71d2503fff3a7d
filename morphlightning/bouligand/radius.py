"""The step up to which the first-order model is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from morphlightning import functional
from morphlightning.bouligand.derivative import Operator, ray_of
from morphlightning.bouligand.mode import Radius
from morphlightning.bouligand.ray import Directions, Point, Ray

TOLERANCE = 1e-9
"""Scores this close count as tied at a breakpoint, where they are computed in float64."""


class ModuleRadius(NamedTuple):
    """How far the parts of a module are exactly affine along a direction.

    Attributes:
        rows: By qualified name of the module they are in, the radius of each value with a kink: in the shape of the
            values, or flat, one after another, where several functions of one module have kinks.
        layers: The least of each module.
        network: The least of all; up to it, the module's derivative is exact.
    """

    rows: dict[str, Tensor]
    layers: dict[str, float]
    network: float


@overload
def exact_radius(
    f: Tensor,
    at: Any,
    /,
    h: Tensor | None,
    v: Tensor | None = None,
    *,
    operator: Operator = functional.dilation,
    eps: float = 0.0,
    **options: Any,
) -> Tensor: ...
@overload
def exact_radius(
    f: nn.Module, at: Any, /, h: Any = None, *, params: Directions | None = None, eps: float = 0.0
) -> ModuleRadius: ...
def exact_radius(
    f: Any,
    at: Any,
    /,
    h: Any = None,
    v: Tensor | None = None,
    *,
    operator: Operator = functional.dilation,
    params: Directions | None = None,
    eps: float = 0.0,
    **options: Any,
) -> Any:
    r"""The largest t up to which :math:`f(p + t d) = f(p) + t f'(p; d)` exactly.

    Of a dilation :math:`\rho_i = \min \{(y_i - s_{ij}) / (d_{ij} - y_i') : j \notin J_i,\ d_{ij} > y_i'\}` with scores
    :math:`s_{ij} = x_j + w_{ij}` and slopes :math:`d_{ij} = h_j + v_{ij}`: when the first candidate overtakes.

    Of an operator, arguments as for :func:`bderivative`, the radius of each row; it is tight: the row bends there. For
    operators of several stages the ray is followed from breakpoint to breakpoint until every row has bent, in
    float64. Of a module, the radius of every value with a kink inside it, along the direction that reaches
    it; tight for that value, while the least of them, the network's, may be shorter than what the outputs show.

    A function is supported if it is piecewise affine along the direction. A product of two moving tensors, such as a
    linear layer whose input and weight both move, is not.

    Args:
        f: As for :func:`bderivative`.
        at: As for :func:`bderivative`.
        h: As for :func:`bderivative`.
        v: As for :func:`bderivative`.
        operator: As for :func:`bderivative`.
        params: As for :func:`bderivative`.
        eps: As for :func:`bderivative`.
        **options: Options of the operator.

    Returns:
        Of an operator, the shape of the output, inf where the row never bends. Of a module, a :class:`ModuleRadius`.

    Raises:
        NotSupportedError: A function that is curved along its direction, jumps or has no rule; it says in which module.
        ShapeError: As for :func:`bderivative`.
        ConfigError: As for :func:`bderivative`.

    Source: the ratio test of the simplex method; derived in docs/bouligand.md, "Exact radius".
    """
    ray = ray_of("exact_radius", f, at, h, v, operator, params, eps, options)
    point = ray.at(eps=eps, radii=True)
    if isinstance(f, nn.Module):
        return _of_module(point)
    rows = [radius.rows for radius in point.radii]
    if len(rows) == 1 and operator in _OPERATORS and rows[0].numel() == point.value.numel():
        return rows[0].view(point.value.shape)
    return _until_bent(ray.double(), eps).to(point.value.dtype)


_OPERATORS = frozenset(getattr(functional, name) for name in functional.__all__)


def _of_module(point: Point) -> ModuleRadius:
    by_name: dict[str, list[Radius]] = {}
    for radius in point.radii:
        by_name.setdefault(radius.name, []).append(radius)
    rows = {
        name: found[0].rows if len(found) == 1 else torch.cat([radius.rows.flatten() for radius in found])
        for name, found in by_name.items()
    }
    layers = {name: float(r.amin()) if r.numel() else math.inf for name, r in rows.items()}
    return ModuleRadius(rows, layers, point.radius)


def breakpoints(ray: Ray, eps: float, tolerance: float, most: float) -> Iterator[tuple[float, Point]]:
    """The ray at 0 and at each point below ``most`` where something in it bends."""
    t = 0.0
    while t < most:
        point = ray.at(t, eps=tolerance if t else max(eps, tolerance), radii=True)
        yield t, point
        t += point.radius


def _until_bent(ray: Ray, eps: float) -> Tensor:
    """The first step at which the slope of each output changes."""
    steps = breakpoints(ray, eps, TOLERANCE, math.inf)
    _, start = next(steps)
    rows = torch.full_like(start.value, math.inf)
    for t, point in steps:
        bent = (point.slope - start.slope).abs() > TOLERANCE * (1 + start.slope.abs())
        rows = torch.where(bent & rows.isinf(), t, rows)
        if not rows.isinf().any():
            break
    return rows
