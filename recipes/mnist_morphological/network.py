"""A network of maxima, minima and additions of constants: no product of an input with a weight anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning.layers import Dilation, Dilation2d, Erosion


@dataclass(frozen=True)
class Shape:
    """What the network is made of.

    Attributes:
        filters: Windowed dilations.
        terms: Erosions of each class; its logit is a dilation of them.
        complement: Show each layer its input and the complement of it.
        centred: Subtract a constant from each channel of each layer, its mean.
        spread: Weights start at U(0, spread).
    """

    filters: int = 64
    terms: int = 20
    complement: bool = True
    centred: bool = True
    spread: float = 0.35


class Centred(nn.Module):
    """x minus a constant a channel, its running mean in training; the weights before it could hold the constant."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.momentum = 0.1

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) to itself; in training the mean is that of the batch."""
        mean = self.mean
        if self.training:
            mean = x.mean([axis for axis in range(x.ndim) if axis != 1])
            self.mean.lerp_(mean.detach(), self.momentum)
        return x - mean.view(-1, *[1] * (x.ndim - 2))


class Network(nn.Module):
    """Windowed dilations of an image and its complement, then suprema of erosions of these and their complements.

    A dilation of (x, -x) by weights (-p, p) is the distance max |x - p| of a window to a pattern p; with lower weights
    a pixel may also be anything, or anything but dark, or anything but light.

    Args:
        shape: Sizes and parts.
        **rules: derivative and heuristic of all layers.
    """

    def __init__(self, shape: Shape, **rules: Any) -> None:
        super().__init__()
        self.shape = shape
        sides = 2 if shape.complement else 1
        rules |= {"initializer": {"name": "upper", "spread": shape.spread}}
        self.dilation = Dilation2d(sides, shape.filters, 9, stride=4, **rules)
        self.erosion = Erosion(sides * shape.filters * 7 * 7, 10 * shape.terms, **rules)
        rules |= {"initializer": {"name": "sparse", "noise": 0.0, "missing": True}}
        self.head = Dilation(10 * shape.terms, 10, **rules)
        centred = Centred if shape.centred else nn.Identity
        self.centre, self.centre_terms = centred(shape.filters), centred(10 * shape.terms)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10) of images (batch, 1, 28, 28) in [0, 1]."""
        found = self.centre(self.dilation(self._both(x - 0.5)))
        terms = self.centre_terms(self.erosion(self._both(found).flatten(1)))
        return self.head(terms)

    def _both(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1) if self.shape.complement else x

    @torch.no_grad()
    def centre_on(self, x: Tensor) -> None:
        """Make the constants the means over these images; of maxima that are hard, where training was soft."""
        training = self.training
        centres = [m for m in self.modules() if isinstance(m, Centred)]
        for module in centres:
            module.momentum = 1.0
        self.train()(x)
        for module in centres:
            module.momentum = 0.1
        self.train(training)
