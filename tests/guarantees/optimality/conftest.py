"""Descent, shared by the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from morphlightning.bregman import OutputLoss
from morphlightning.guarantees.optimality import ParallelSum


def _descend(network: ParallelSum, loss: OutputLoss, x: Tensor, y: Tensor, weight: float, steps: int = 2000) -> None:
    """Minimize the objective from where the network is, by L-BFGS."""
    parameters = list(network.parameters())
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        max_eval=3 * steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(network(x), y) + weight * network.penalties().sum()
        value.backward()
        return value

    optimizer.step(closure)


@pytest.fixture(scope="session")
def descend():
    return _descend
