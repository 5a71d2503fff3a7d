r"""Exact margins of a last layer that is a (signed) dilation or erosion.

For outputs :math:`D_i(z) = \max_j g_{ij}(z_j)`, :math:`g_{ij}(z) = \max(z + a_{ij}, b_{ij} - z)`, the worst margin of p
over q in a box [l, u] is

.. math::

    \min_z D_p(z) - D_q(z) = \min_{j,\ \pm}\
        \max\bigl(g_{pj}(e),\ \max_{i \ne j} \min_{z_i} g_{pi}(z_i)\bigr) - (\pm e + w_{qj}),

with (e, w) = (u_j, a) for the sign + and (l_j, b) for -: if output q takes its value from coordinate j and a sign, the
best place of z_j for it is that end, because :math:`\max(g_{pj}, C)` has no slope steeper than the 1 that it gains, and
all other coordinates are free to make :math:`D_p` as small as they can. O(n) for a pair of classes. Deeper margins are
NP-hard already for a maximum of minima and a minimum of maxima. Derived here; docs/guarantees.md has the proofs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.guarantees.robustness.boxes import Box, others
from morphlightning.guarantees.robustness.intervals import propagate

CHUNK = 1 << 21
"""Numbers of an intermediate result."""


class Weights(NamedTuple):
    """A last layer as signed dilations; for an erosion, which is minus one, ``sign`` is -1."""

    a: Tensor
    b: Tensor
    sign: int

    @classmethod
    def of(cls, layer: nn.Module) -> Weights:
        """Those of a dense layer, in float64; NotCertifiable for another."""
        if isinstance(layer, layers.SignedDilation | layers.SignedErosion):
            a, b = layer.a.double(), layer.b.double()
            return cls(a, b, 1) if isinstance(layer, layers.SignedDilation) else cls(b, a, -1)
        weight = getattr(layer, "effective_weight", torch.zeros(0)).double()
        none = torch.full_like(weight, -math.inf)
        if type(layer) is layers.Dilation:
            return cls(weight, none, 1)
        if type(layer) is layers.Erosion:  # min_j x_j - w_j = -max_j (w_j - x_j)
            return cls(none, weight, -1)
        raise NotCertifiable(
            "exact margins are for a last layer that is a Dilation, Erosion, SignedDilation or SignedErosion; "
            "use method='interval'"
        )


@torch.no_grad()
def exact_margins(layer: nn.Module, box: Box, labels: Tensor) -> Tensor:
    r"""The worst :math:`f_y(z) - \max_{k \ne y} f_k(z)` over all z of a box, for the outputs f of one layer.

    Args:
        layer: A Dilation, Erosion, SignedDilation or SignedErosion of classes.
        box: Inputs (batch, features).
        labels: y, (batch,).

    Returns:
        (batch,), in float64: exact but for what rounding of outputs in the dtype of the box may take from it, which is
        subtracted. It is at most that much below what intervals of the outputs give, and often above.

    Raises:
        NotCertifiable: Another layer.
    """
    weights, outputs = Weights.of(layer), propagate(layer, box)
    classes, features = weights.a.shape
    rows = max(1, CHUNK // (classes * features))
    pieces = zip(box.lower.split(rows), box.upper.split(rows), labels.split(rows), strict=True)
    pairs = torch.cat([_pairs(weights, lower.double(), upper.double(), y) for lower, upper, y in pieces])
    moduli = torch.maximum(outputs.lower.abs(), outputs.upper.abs()).double()
    slack = torch.finfo(box.lower.dtype).eps * (moduli + moduli.gather(1, labels[:, None]))
    return -others(slack.nan_to_num(posinf=0) - pairs, labels).amax(1)


def _pairs(weights: Weights, lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
    """Worst margins of each label over all classes, (rows, classes)."""
    lower, upper = lower[:, None], upper[:, None]
    mine = weights.a[labels, None], weights.b[labels, None]
    all_of = weights.a[None], weights.b[None]
    (pa, pb), (qa, qb) = (mine, all_of) if weights.sign > 0 else (all_of, mine)
    least = torch.maximum(torch.maximum(lower + pa, pb - upper), (pa + pb) / 2)
    rest = _largest_of_others(least)
    worst = torch.full((), math.inf, dtype=lower.dtype, device=lower.device)
    for end, gained in ((upper, upper + qa), (lower, qb - lower)):
        value = torch.maximum(torch.maximum(end + pa, pb - end), rest)
        margin = torch.where(gained == -math.inf, math.inf, value - gained).amin(-1)
        worst = torch.minimum(worst, margin)
    return worst


def _largest_of_others(x: Tensor) -> Tensor:
    """For each number of the last axis the largest of the others, -inf where there is none."""
    top, index = x.max(-1, keepdim=True)
    second = x.scatter(-1, index, -math.inf).amax(-1, keepdim=True)
    return top.expand_as(x).scatter(-1, index, second)


class WorstCase(NamedTuple):
    """Of one sample each."""

    radius: Tensor
    """Below it nothing changes the decision; at it there is a tie (batch,)."""
    example: Tensor
    """An input so far away, times a factor (batch, features); the sample itself where the radius is infinite."""


@torch.no_grad()
def dilation_radius(layer: nn.Module, x: Tensor, labels: Tensor, factor: float = 1.001) -> WorstCase:
    r"""The exact radius in the sup norm of a classifier that is one dilation, for inputs without bounds, and an attack.

    .. math:: r = \min_{k \ne y}\ \min_{j:\ w_{yj} \le w_{kj}}
        \tfrac12\bigl(\max_{i \ne j}(x_i + w_{yi}) - x_j - w_{kj}\bigr),

    infinite where no class has a weight that is not below that of the label. Output k wins by a coordinate j where its
    weight is not below that of y: z_j goes up and all other coordinates go down, which is the example.

    Args:
        layer: A Dilation of classes.
        x: Samples (batch, features).
        labels: y, (batch,).
        factor: The example lies at ``factor`` times the radius.

    Raises:
        NotCertifiable: Another layer.

    Source: derived here; docs/guarantees.md has the proof.
    """
    if type(layer) is not layers.Dilation:
        raise NotCertifiable(f"dilation_radius is for a Dilation alone, got {type(layer).__name__}")
    weight, samples = layer.effective_weight.double(), x.double()
    rest = _largest_of_others(samples + weight[labels])
    radii = torch.empty(len(x), len(weight), dtype=samples.dtype, device=x.device)
    coordinates = torch.empty_like(radii, dtype=torch.long)
    for k, row in enumerate(weight):
        half = (rest - samples - row) / 2
        possible = (weight[labels] <= row) & (row > -math.inf)
        radii[:, k], coordinates[:, k] = torch.where(possible, half, math.inf).min(1)
    radius, winner = radii.scatter(1, labels[:, None], math.inf).min(1)
    radius, at = radius.clamp_min(0), coordinates.gather(1, winner[:, None])
    step = torch.where(radius.isfinite(), radius * factor, 0)[:, None]
    example = (samples - step).scatter(1, at, samples.gather(1, at) + step)
    return WorstCase(radius, example)
