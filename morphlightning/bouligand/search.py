"""Exact line search: the mean squared error along a direction, piece by piece."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morphlightning.bouligand.radius import TOLERANCE, breakpoints
from morphlightning.bouligand.ray import Directions, module_ray
from morphlightning.errors import ConfigError, DataError, ShapeError


class LineSearch(NamedTuple):
    """The best step along a direction.

    Attributes:
        step: Where the loss is least.
        loss: The mean squared error there.
        start: The mean squared error at step 0.
        breakpoints: The steps visited at which something in the network bends.
        complete: Whether all pieces up to the largest step were visited, so that ``step`` is the global minimum; else
            it is the minimum of those that were.
    """

    step: float
    loss: float
    start: float
    breakpoints: tuple[float, ...]
    complete: bool


def line_search(
    module: nn.Module,
    x: Any,
    target: Tensor,
    h: Any = None,
    params: Directions | None = None,
    *,
    max_step: float = 1.0,
    max_pieces: int = 10_000,
    tolerance: float = TOLERANCE,
) -> LineSearch:
    r"""The global minimum of :math:`t \mapsto \operatorname{mean} (f(p + t d) - target)^2` over [0, max_step].

    From breakpoint to breakpoint the output is y + (t - t_k) y', and the error a parabola whose least point is known.
    Each piece costs one pass, in float64 and with all samples at once, so there are as many pieces as candidates
    overtake each other anywhere in the network.

    Args:
        module: A module that is piecewise affine along the direction, as for :func:`exact_radius`.
        x: Its input, or a tuple of them.
        target: What the output is compared with, of its shape.
        h: Direction of the input; None if it stays.
        params: Directions of parameters, by qualified name.
        max_step: The largest step, > 0; may be infinite.
        max_pieces: How many pieces are visited at most, >= 1.
        tolerance: Scores this close count as tied at a breakpoint, > 0; the result errs by about as much.

    Returns:
        The step, its loss, and whether all pieces were visited.

    Raises:
        ConfigError: max_step, max_pieces or tolerance is not positive; an unknown parameter.
        ShapeError: target has another shape than the output, or a direction than what it moves.
        DataError: The error is not finite at step 0.
        NotSupportedError: The module is curved along the direction.

    Source: derived in docs/bouligand.md, "Line search".
    """
    for name, value in (("max_step", max_step), ("max_pieces", max_pieces), ("tolerance", tolerance)):
        if not value > 0:
            raise ConfigError(f"line_search: {name} must be > 0, got {value}")
    ray = module_ray("line_search", module, x, h, params, dtype=torch.float64)
    step, loss, start, visited, complete = 0.0, math.inf, math.inf, list[float](), True
    for t, point in breakpoints(ray, tolerance, tolerance, max_step):
        if len(visited) == max_pieces:
            complete = False
            break
        if point.value.shape != target.shape:
            raise ShapeError(
                f"line_search: target has shape {tuple(target.shape)}, the output {tuple(point.value.shape)}"
            )
        residual = point.value - target
        curvature, rise = float(point.slope.square().mean()), float((residual * point.slope).mean())
        here = float(residual.square().mean())
        if not math.isfinite(here):
            raise DataError(f"line_search: the error at step {t} is {here}; outputs and targets must be finite")
        start = here if not visited else start
        visited.append(t)
        ahead = min(max(-rise / curvature, 0.0), point.radius, max_step - t) if curvature else 0.0
        there = here + (2 * rise + curvature * ahead) * ahead
        if there < loss:
            step, loss = t + ahead, there
    return LineSearch(step, loss, start, tuple(visited[1:]), complete)
