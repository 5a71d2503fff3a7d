"""The exact polar of dilations with two taps, by projections onto polyhedral cones."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

FEASIBLE = 1e-10
"""By how much a point may be outside a cone and count as inside: wider makes the value larger, never smaller."""


def two_tap_polar(x: Tensor, z: Tensor) -> tuple[float, tuple[float, float, float], float]:
    r"""The largest value of \|sum_n z_n max(s x_n1 + w_1, s x_n2 + w_2)\| over s >= 0, s^2 + w_1^2 + w_2^2 <= 1.

    Sorted by :math:`d_n = x_{n1} - x_{n2}`, the samples that take tap 1 are the last ones, for any s >= 0. So there are
    N + 1 cones of (s, w), cut out by s >= 0 and the two samples at the border, on each of which the sum is linear,
    :math:`\langle a_k, (s, w) \rangle`. Its largest value on a cone and the unit ball is the norm of the projection of
    a_k, and a projection onto a cone with three faces is one onto the intersection of some faces' planes: all 8 sets of
    faces are tried, for all cones and both signs together.

    Args:
        x: Inputs (N, 2), float64.
        z: Weights (N,), float64.

    Returns:
        The value, (s, w_1, w_2), and the sign of the sum there.

    Source: derived here. Cost O(N) after sorting.
    """
    order = (x[:, 0] - x[:, 1]).argsort()
    x, z = x[order], z[order]
    linear = _linear(x, z)
    faces = _faces(x[:, 0] - x[:, 1])
    sums = torch.cat([linear, -linear])  # (2 (N + 1), 3): both signs
    faces = faces.repeat(2, 1, 1)
    best, where = sums.new_zeros(len(sums)), torch.zeros_like(sums)
    for active in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in range(3)):
        point = sums
        if active:
            planes = faces[:, list(active)]  # (cones, planes, 3)
            point = sums - (torch.linalg.pinv(planes) @ planes @ sums[:, :, None])[:, :, 0]
        size = torch.linalg.vector_norm(point, dim=1)
        inside = ((faces @ point[:, :, None])[:, :, 0] >= -FEASIBLE * size[:, None] * _sizes(faces)).all(1)
        better = inside & (size > best)
        best = torch.where(better, size, best)
        where = torch.where(better[:, None], point / size.clamp_min(1e-300)[:, None], where)
    first = int(best.argmax())
    gain, one, two = where[first].tolist()
    return best[first].item(), (max(gain, 0.0), one, two), 1.0 if first < len(linear) else -1.0


def _linear(x: Tensor, z: Tensor) -> Tensor:
    """The a_k, (N + 1, 3): the samples from k on take tap 1, those before it tap 2."""
    zero = z.new_zeros(1)

    def after(values: Tensor) -> Tensor:
        return torch.cat([values.flip(0).cumsum(0).flip(0), zero])

    def before(values: Tensor) -> Tensor:
        return torch.cat([zero, values.cumsum(0)])

    return torch.stack([after(z * x[:, 0]) + before(z * x[:, 1]), after(z), before(z)], 1)


def _faces(d: Tensor) -> Tensor:
    """Cone k is where these (N + 1, 3, 3) times (s, w_1, w_2) are >= 0; a row of zeros where there is no border."""
    borders = torch.stack([d, torch.ones_like(d), -torch.ones_like(d)], 1)
    none = borders.new_zeros(1, 3)
    gain = borders.new_tensor([1.0, 0.0, 0.0]).expand(len(d) + 1, 3)
    return torch.stack([gain, torch.cat([borders, none]), torch.cat([none, -borders])], 1)


def _sizes(faces: Tensor) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(faces, dim=2)
    return sizes
