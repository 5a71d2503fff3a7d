"""Small networks of signed layers, trained on handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from morphlightning.interfaces import Hardenable
from morphlightning.layers import MeanShift, SoftSignedDilation, SoftSignedErosion
from morphlightning.models import MarginHinge

EPS, TRAINED = 0.1, 1300


class Trained(NamedTuple):
    network: nn.Sequential
    inputs: Tensor
    labels: Tensor


@pytest.fixture(scope="session", params=[2, 3], ids=["two layers", "three layers"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """A hard network in evaluation mode with 497 test images, pixels in [0, 1]."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.param)
        network = train(request.param, images[:TRAINED], labels[:TRAINED])
    return Trained(network, images[TRAINED:], labels[TRAINED:])


def train(depth: int, images: Tensor, labels: Tensor, width: int = 64, epochs: int = 25) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten())
    for _ in range(depth - 1):
        network.extend([SoftSignedDilation(64, width), MeanShift(width)])
    network.append(SoftSignedErosion(width, 10))
    soft = [layer for layer in network if isinstance(layer, Hardenable)]
    for layer in soft:
        centres = 0.1 * torch.randn(layer.weight.shape[0], layer.in_features)
        layer.weight.data.copy_(torch.cat([-centres, centres], 1))
    loss = MarginHinge(1.5 * EPS, cross_entropy=1.0)
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()])
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(images)).split(100)]
    for number, batch in enumerate(batches):
        done = number / len(batches)
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - done)
        loss.set_cross_entropy(0.02**done)
        for layer in soft:
            layer.set_beta(10 * 6**done)
        optimizer.zero_grad()
        loss(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    network.eval()
    return nn.Sequential(*(layer.harden() if isinstance(layer, Hardenable) else layer for layer in network)).eval()
