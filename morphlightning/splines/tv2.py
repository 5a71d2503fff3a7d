"""Second-order total variation of linear splines, which counts and measures their kinks, and its proximal map."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, MorphLightningError
from morphlightning.splines.constraint import Knots, SlopeConstraint

_ROUNDS = 10_000


def kinks(values: Tensor, knots: Knots) -> Tensor:
    """Changes of slope at the inner knots, (splines, K - 2); arguments as for :func:`tv2`."""
    steps = values.diff(dim=-1)
    if isinstance(knots, Tensor):
        return (steps / knots.to(values.dtype).diff(dim=-1)).diff(dim=-1)
    return steps.diff(dim=-1) * ((values.shape[-1] - 1) / (knots[1] - knots[0]))


def tv2(values: Tensor, knots: Knots) -> Tensor:
    r"""Sum of the changes of slope of each spline, :math:`\sum_k |s_{k+1} - s_k|`, (splines,); differentiable.

    Args:
        values: ``(splines, K)``.
        knots: First and last of equally spaced knots, or a tensor ``(K,)`` or ``(splines, K)``.

    Source: the regularizer of Bohra et al. (2020) and Unser et al. (arXiv 2408.13114).
    """
    return kinks(values, knots).abs().sum(-1)


def active_knots(values: Tensor, knots: Knots, share: float = 0.01) -> Tensor:
    """Whether an inner knot's kink is more than ``share`` of its spline's tv2, (splines, K - 2), bool."""
    sizes = kinks(values, knots).abs()
    return sizes > share * sizes.sum(-1, keepdim=True)


@torch.no_grad()
def prox_tv2(
    values: Tensor,
    knots: Knots,
    weight: float | Tensor,
    constraint: SlopeConstraint | None = None,
    tolerance: float = 1e-6,
) -> Tensor:
    r"""The proximal map :math:`\arg\min_n \frac12 \|n - c\|^2 + w\,\mathrm{TV}^{(2)}(n)`, each spline for itself.

    Exact without a constraint. With one, n is confined to it, by Dykstra's alternation of both proximal maps, which
    keeps a subgradient p of w TV2 with n = c - p - q, q normal to the constraint; then the duality gap is
    w TV2(n) - <p, n>, and n is nearer to the solution than the square root of twice the gap. Computed in float64 on the
    processor.

    Args:
        values: c, ``(splines, K)``.
        knots: As for :func:`tv2`.
        weight: w >= 0, a number or one for each spline ``(splines,)``.
        constraint: Bounds of the slopes.
        tolerance: With a constraint, the largest distance from the solution, relative to the largest value where that
            is above 1.

    Returns:
        n, of the shape and dtype of values.

    Raises:
        ConfigError: A weight is negative.

    Source: Dykstra's algorithm for two proximal maps, Bauschke and Combettes (2008); exact map and gap derived here.
    """
    c = values.double().cpu()
    w = torch.as_tensor(weight, dtype=torch.float64).detach().cpu().expand(len(c))
    if not (w >= 0).all():
        raise ConfigError(f"prox_tv2: weight must be >= 0, got {weight}")
    t = knots.double().cpu().expand_as(c) if isinstance(knots, Tensor) else torch.linspace(*knots, c.shape[1]).to(c)
    t = t.expand_as(c)
    if constraint is None:
        return _prox(c, t, w).to(values)
    n, p, q = c, torch.zeros_like(c), torch.zeros_like(c)
    for _ in range(_ROUNDS):
        bent = _prox(n + p, t, w)
        p = n + p - bent
        n = constraint.project(bent + q, knots.cpu() if isinstance(knots, Tensor) else knots, "l2")
        q = bent + q - n
        gap = w * tv2(n, t) - (p * n).sum(1)
        if not (2 * gap > (tolerance * c.abs().amax(1).clamp_min(1)) ** 2).any():
            return n.to(values)
    raise MorphLightningError(f"prox_tv2: not within {tolerance} of the solution after {_ROUNDS} rounds; allow more")


def _prox(c: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    from morphlightning.ops.cpu.kinks import solve

    n, certain = solve(t, c, weight)
    if not certain.all():
        spline = int((~certain).nonzero()[0])
        raise MorphLightningError(f"prox_tv2: spline {spline} was not solved; its knots may lie too unevenly")
    return n
