"""How sparse a code is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from morphlightning.errors import ShapeError


class Sparsity(Metric):
    r"""Hoyer's sparsity of codes, mean over the samples.

    .. math:: s(c) = \frac{\sqrt K - \lVert c \rVert_1 / \lVert c \rVert_2}{\sqrt K - 1} \in [0, 1]

    for a code c of K entries: 1 where one entry alone is not zero, 0 where all have the same absolute value. It does
    not depend on the scale of c, and needs no threshold that says what counts as zero. A code of zeros alone, for which
    the formula is 0/0, counts as 1.

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Source: P. O. Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 5 (2004), section 3.1.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, code: Tensor) -> None:
        """Add a batch of codes (N, K), K >= 2; further axes count as entries.

        Raises:
            ShapeError: There are fewer than two axes or fewer than two entries.
        """
        if code.ndim < 2 or math.prod(code.shape[1:]) < 2:
            raise ShapeError(f"Sparsity: code has shape {tuple(code.shape)}, expected (N, K) with K >= 2 (axis 1)")
        code = code.flatten(1)
        code = code if code.dtype == torch.float64 else code.float()
        largest = code.abs().amax(1, keepdim=True)
        code = torch.where(largest == 0, torch.eye(1, code.shape[1], device=code.device), code / largest)
        root = math.sqrt(code.shape[1])
        sparsity = (root - code.norm(1, dim=1) / code.norm(2, dim=1)) / (root - 1)
        self.total = self.total + sparsity.sum()
        self.count += len(code)

    def compute(self) -> Tensor:
        """Mean over all samples, a scalar."""
        return self.total / self.count
