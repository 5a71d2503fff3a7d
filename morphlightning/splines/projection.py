r"""Two projections of splines' values onto bounds of the steps from knot to knot, spline by spline.

Values ``(splines, K)``, float64; bounds ``low <= n_{k+1} - n_k <= high`` of shapes that broadcast to
``(splines, K - 1)``, slope bounds times the widths of the pieces. Gradients flow to values and bounds, to any order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_steps(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip the steps, add them up again and keep each spline's mean.

    Not the nearest such values, and not non-expansive, but a few operations. NaN gives NaN.

    Source: the projection of Ducotterd et al. (JMLR 2024) and Goujon et al. (arXiv 2211.12461).
    """
    steps = values.diff(dim=-1).clamp(low, high)
    summed = F.pad(steps.cumsum(-1), (1, 0))
    return summed + (values - summed).mean(-1, keepdim=True)


def nearest_steps(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""The metric projection: :math:`\arg\min_n \frac12 \|n - c\|^2` within the bounds, exactly.

    Knots whose step lies on a bound move together: with the offsets o that the bounds prescribe inside such a block,
    n = mean(c - o) + o. So the derivative is the mean over each block, itself an orthogonal projection. Computed on
    the processor, wherever the values are.

    Derived here.
    """
    from morphlightning.ops.cpu import chain

    shape = (len(values), values.shape[1] - 1)
    rows = (part.detach().cpu() for part in (values, low.expand(shape), high.expand(shape)))
    solved, side = (part.to(values.device) for part in chain.solve(*rows))
    if not torch.is_grad_enabled() or not any(part.requires_grad for part in (values, low, high)):
        return solved
    prescribed = torch.where(side > 0, high, torch.where(side < 0, low, torch.zeros_like(low)))
    offsets = F.pad(prescribed.cumsum(-1), (1, 0))
    block = F.pad((side == 0).cumsum(-1), (1, 0))
    zeros = torch.zeros_like(values)
    sizes = zeros.scatter_add(1, block, torch.ones_like(values)).clamp_min(1)
    means = zeros.scatter_add(1, block, values - offsets) / sizes
    moved = means.gather(1, block) + offsets
    return solved + (moved - moved.detach())  # the solver's rounding, this formula's derivatives
