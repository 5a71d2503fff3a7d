"""Proximal gradient steps as the layers of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.inverse.denoisers import averagedness
from morphlightning.inverse.operators import LinearOperator


class UnrolledProximalGradient(nn.Module):
    r"""x_{k+1} = P_k(x_k - s_k A^T (A x_k - y)), k < K, trained end to end.

    The steps s_k = 2 sigmoid(r_k) / ||A||^2 are learned and stay in (0, 2/||A||^2), so each gradient step is
    non-expansive. The proximal maps P_k are modules: learnable splines, networks, or one module given K times, whose
    parameters the steps then share.

    Args:
        operator: A.
        proximals: P_0, ..., P_{K-1}: images to images of the same shape.
        step: Where s_k ||A||^2 starts, in (0, 2).

    Attributes:
        raw_steps: r, (K,).

    Raises:
        ConfigError: There is no proximal map, or the step is not in (0, 2).

    Source: Gregor and LeCun 2010 (unrolling); the bound on the steps and the stability constant are derived here.
    """

    def __init__(self, operator: LinearOperator, proximals: Sequence[nn.Module], step: float = 1.0) -> None:
        super().__init__()
        if not proximals or not 0 < step < 2:
            raise ConfigError(
                f"UnrolledProximalGradient: expected proximal maps and a step in (0, 2), got {len(proximals)}, {step}"
            )
        self.operator, self.proximals = operator, nn.ModuleList(proximals)
        self.raw_steps = nn.Parameter(torch.full((len(proximals),), math.log(step / (2 - step))))

    def steps(self) -> Tensor:
        """s, (K,)."""
        return 2 / self.operator.norm_bound() ** 2 * self.raw_steps.sigmoid()

    def forward(self, y: Tensor, start: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) from data (N, ...), starting from A^T y / ||A||^2 unless told."""
        back = self.operator.adjoint(y)
        x = back / self.operator.norm_bound() ** 2 if start is None else start
        for proximal, step in zip(self.proximals, self.steps(), strict=True):
            x = proximal(x - step * (self.operator.normal(x) - back))
        return x

    def stability(self) -> float | None:
        """A constant c of ||x_K(y) - x_K(y')|| <= c ||y - y'||, None unless all P_k declare to be 1-Lipschitz.

        c = 1/||A|| + ||A|| sum_k s_k.
        """
        if any(averagedness(each) is None for each in self.proximals):
            return None
        norm = self.operator.norm_bound()
        return 1 / norm + norm * float(self.steps().detach().sum())

    @property
    def guarantee(self) -> str:
        """What is known of the result."""
        count, constant = len(self.proximals), self.stability()
        if constant is None:
            return f"none: {count} steps, not all of whose proximal maps declare to be 1-Lipschitz"
        return (
            f"{count} steps, no limit: errors of the data grow at most {constant:.4g} times (1-Lipschitz proximal maps)"
        )
