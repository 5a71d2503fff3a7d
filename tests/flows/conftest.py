from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from morphlightning.flows import (
    Bijection,
    Composition,
    Conditioner,
    Coupling,
    ElementwiseSpline,
    InvertibleResidual,
    Logit,
    MonotoneSpline,
    Normalization,
    coupling_flow,
)
from morphlightning.interfaces import LipschitzSpec


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Rotations(nn.Module):
    """Orthogonal matrices and sines: 1-Lipschitz by construction."""

    def __init__(self, dim: int, constant: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        make = nn.utils.parametrizations.orthogonal
        self.first, self.last = make(nn.Linear(dim, dim)), make(nn.Linear(dim, dim))
        self.constant, self.scale = constant, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.sin(self.first(x)))

    def lipschitz_spec(self) -> LipschitzSpec:
        return LipschitzSpec(self.constant)


def disturbed(bijection: Bijection, size: float = 0.7) -> Bijection:
    """With parameters moved away from the identity."""
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return bijection


def coupling(kind: str) -> Callable[[int], Bijection]:
    def make(dim: int) -> Bijection:
        spline = MonotoneSpline(kind, bins=5, bound=2.0)  # type: ignore[arg-type]
        kept = range(dim // 2)
        return Coupling(dim, kept, Conditioner(dim // 2, (dim - dim // 2) * spline.count, (8,)), spline)

    return make


MAKERS: dict[str, Callable[[int], Bijection]] = {
    "quadratic": coupling("quadratic"),
    "linear": coupling("linear"),
    "affine": coupling("affine"),
    "elementwise": ElementwiseSpline,
    "normalization": Normalization,
    "residual": lambda dim: InvertibleResidual(dim, Rotations(dim), 0.8, tolerance=1e-12),
    "composition": lambda dim: Composition(Normalization(dim), coupling("quadratic")(dim), ElementwiseSpline(dim)),
    "coupling_flow": lambda dim: coupling_flow(dim, 3, (8,), MonotoneSpline(bins=4)),
    "logit": Logit,
}


def make(name: str, dim: int, dtype: torch.dtype = torch.float64, size: float = 0.7) -> Bijection:
    return disturbed(MAKERS[name](dim).to(dtype), size).eval()


def points(name: str, n: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(n, dim, dtype=torch.float64).to(dtype) * 2
    return torch.sigmoid(x) if name == "logit" else x
