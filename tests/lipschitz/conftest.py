"""A search for pairs of inputs that break a Lipschitz bound."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from morphlightning.interfaces import LipschitzSpec

Hunt = Callable[..., float]
PAIRS = 8
ORDERS = {"l2": 2, "linf": math.inf}


def steepest(
    module: nn.Module, shape: tuple[int, ...], norms: tuple[str, str], *, seed: int = 0, steps: int = 30
) -> float:
    """The largest |f(x) - f(y)|/|x - y| that gradient ascent on pairs and derivatives at single points find."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    pairs = torch.randn(2, PAIRS, *shape, generator=generator, dtype=torch.float64)
    pairs = pairs * torch.logspace(-2, 1, PAIRS, dtype=torch.float64).view(-1, *(1,) * len(shape))
    pairs[1] = pairs[0] + pairs[1] * torch.logspace(0, -3, PAIRS, dtype=torch.float64).view(-1, *(1,) * len(shape))
    pairs.requires_grad_()
    optimizer, best = torch.optim.Adam([pairs], lr=0.05), 0.0
    for _ in range(steps):
        ratios = ratio(module, pairs[0], pairs[1], norms)
        best = max(best, ratios.max().item())
        optimizer.zero_grad()
        (-(ratios + 1e-12).log().sum()).backward()
        optimizer.step()
    for x in pairs[0].detach():
        best = max(best, derivative_norm(torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x), x, norms))
    return best


def ratio(module: nn.Module, x: Tensor, y: Tensor, norms: tuple[str, str]) -> Tensor:
    change, distance = (module(x) - module(y)).flatten(1), (x - y).flatten(1)
    return change.norm(ORDERS[norms[1]], 1) / distance.norm(ORDERS[norms[0]], 1).clamp_min(1e-9)


def derivative_norm(jacobian: Tensor, x: Tensor, norms: tuple[str, str]) -> float:
    matrix = jacobian.reshape(-1, x.numel())
    if norms == ("l2", "l2"):
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(matrix.norm(1 if norms[0] == "linf" else 2, dim=1).max())


@pytest.fixture
def hunt() -> Hunt:
    def hunt(module: nn.Module, shape: tuple[int, ...], spec: LipschitzSpec, **options: int) -> float:
        norms = tuple("l2" if norm == "any" else norm for norm in (spec.norm_in, spec.norm_out))
        return steepest(module, shape, norms, **options)

    return hunt
