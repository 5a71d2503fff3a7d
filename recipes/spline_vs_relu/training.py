"""Training by Adam with a cosine schedule, and the choice of its learning rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""The same for every activation."""
TUNING_SEEDS = (1000, 1001)
"""They choose the learning rate, and serve nothing else."""


def fit(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    rate: float,
    steps: int,
) -> float:
    """Train for so many steps; seconds of processor time."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.process_time()
    network.train()
    for x, y in batches:
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    return time.process_time() - began


def choose(score: Callable[[float, int], float]) -> tuple[float, dict[float, float]]:
    """The learning rate with the lowest mean score over the tuning seeds, and all scores."""
    found = {rate: sum(score(rate, seed) for seed in TUNING_SEEDS) / len(TUNING_SEEDS) for rate in RATES}
    return min(found, key=found.__getitem__), found


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
