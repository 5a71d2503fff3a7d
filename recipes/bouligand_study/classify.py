"""Small classifiers with one or more morphological layers, and what one training run of them tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from images import CLASSES, Images, accuracy
from report import Setting
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import Method, Schedule, fit

from morphlightning.interfaces import Spec
from morphlightning.layers import Dilation, Dilation2d, Erosion, MorphLayer

UNITS, CHANNELS, WINDOW = 64, 8, 5
AUTOGRAD = Method("autograd", optimizer="adam", lr=3e-3)
SOFT = Method("soft", {"name": "soft", "beta": 15.0}, optimizer="adam", lr=3e-3)

Build = Callable[[Images, dict[str, Any]], nn.Sequential]


class MaxOverPositions(nn.Module):
    """(batch, channels, height, width) to (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


def linear(images: Images, options: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(images.side**2, CLASSES))


def two_linear(images: Images, options: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(images.side**2, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES))


def dense_input(images: Images, options: dict[str, Any]) -> nn.Sequential:
    return stack(1)(images, options)


def dense_output(images: Images, options: dict[str, Any]) -> nn.Sequential:
    head = Dilation(UNITS, CLASSES, **{"initializer": "sparse", **options})
    return nn.Sequential(nn.Flatten(), nn.Linear(images.side**2, UNITS), head)


def window_input(images: Images, options: dict[str, Any]) -> nn.Sequential:
    positions = ((images.side + 1) // 2) ** 2
    first = Dilation2d(1, CHANNELS, WINDOW, stride=2, **options)
    return nn.Sequential(first, nn.Flatten(), nn.Linear(CHANNELS * positions, CLASSES))


def window_output(images: Images, options: dict[str, Any]) -> nn.Sequential:
    first = nn.Conv2d(1, 2 * CHANNELS, WINDOW, stride=2, padding=WINDOW // 2)
    return nn.Sequential(first, Dilation2d(2 * CHANNELS, CLASSES, WINDOW, **options), MaxOverPositions())


def stack(depth: int) -> Build:
    """``depth`` dense layers, dilations and erosions by turns, before a linear one."""

    def build(images: Images, options: dict[str, Any]) -> nn.Sequential:
        sizes = [images.side**2] + [UNITS] * depth
        layers = [(Erosion if k % 2 else Dilation)(*sizes[k : k + 2], **options) for k in range(depth)]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(UNITS, CLASSES))

    return build


def morphological(network: nn.Module) -> list[MorphLayer]:
    return [layer for layer in network.modules() if isinstance(layer, MorphLayer)]


def train(
    build: Build, images: Images, method: Method, seed: int, setting: Setting, initializer: Spec | None = None
) -> dict[str, float]:
    """Test accuracy, training loss, and for the first morphological layer what reaches its weights.

    ``sample %``: share of its weights that one image gives a gradient, at the start. ``ever %``: share that any batch
    gave one during training.
    """
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {**method.rules, "generator": generator}
    if initializer is not None:
        options["initializer"] = initializer
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch's own layers know no generator
        network = build(images, options)
    layers = morphological(network)
    start = touched_by_a_sample(network, images) if layers else 0.0
    ever = torch.zeros_like(layers[0].weight, dtype=torch.bool) if layers else torch.zeros(1)

    def watch(_: Tensor) -> None:
        if layers and layers[0].weight.grad is not None:
            ever.logical_or_(layers[0].weight.grad != 0)

    epochs = 2 if setting.quick else 20 if images.name == "digits" else 4
    fit(network, images.x, images.y, cross_entropy, method, Schedule(epochs, 50), generator, watch)
    with torch.no_grad():
        loss = cross_entropy(network(images.x[:2000]), images.y[:2000]).item()
    return {
        "accuracy": accuracy(network, images.test_x, images.test_y),
        "loss": loss,
        "sample %": start,
        "ever %": 100 * ever.double().mean().item(),
    }


def touched_by_a_sample(network: nn.Module, images: Images, samples: int = 16) -> float:
    """Percent of the weights of the first morphological layer with a gradient, mean over images."""
    (layer, *_) = morphological(network)
    shares = []
    for k in range(samples):
        loss = cross_entropy(network(images.x[k : k + 1]), images.y[k : k + 1])
        (grad,) = torch.autograd.grad(loss, layer.weight)
        shares.append((grad != 0).double().mean())
    return 100 * torch.stack(shares).mean().item()
