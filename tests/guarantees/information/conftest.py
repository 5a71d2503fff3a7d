"""Small chains of max-plus layers and data for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphlightning.layers import Erosion, MeanShift, SignedDilation, SignedErosion

START = {"name": "uniform", "low": -0.4, "high": 0.4}


def signed(seed: int = 0) -> nn.Sequential:
    """Two signed layers with a shift whose mean was learned, 6 inputs, 3 classes."""
    torch.manual_seed(seed)
    shift = MeanShift(5)
    network = nn.Sequential(
        nn.Flatten(),
        SignedDilation(6, 5, initializer=START),
        shift,
        SignedErosion(5, 4, initializer=START),
        Erosion(4, 3, initializer=START),
    )
    shift.mean.uniform_(0.2, 0.7)
    return network.eval()


def samples(count: int = 200, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs, and what the network of seed 0 makes of them, some of it wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 2, 3, generator=generator)
    labels = signed()(x).argmax(1)
    return x, torch.where(torch.rand(count, generator=generator) < 0.1, (labels + 1) % 3, labels)


@pytest.fixture
def network() -> nn.Sequential:
    return signed()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return samples()
