"""The lifted methods, as something that iterates."""

from __future__ import annotations

from torch import Tensor, nn
from ways import Way

from morphlightning import bregman

KINDS = {"badmm": bregman.Badmm, "mm": bregman.MajorizeMinimize}

RIDGE_2 = 1.0
"""Of the second layer, where the settings do not say."""


class Lifted:
    """A lifted method with the auxiliary variables of all samples.

    Args:
        way: Its settings; ``ridge`` and ``ridge_2`` are those of the first and the second layer.
        network: What is trained.
        x: Inputs.
        y: Targets.
    """

    def __init__(self, way: Way, network: nn.Sequential, x: Tensor, y: Tensor) -> None:
        options = dict(way.settings)
        ridge = options.pop("ridge"), options.pop("ridge_2", RIDGE_2)
        self.method = KINDS[way.method](bregman.Chain(network), bregman.SquaredError(), ridge=ridge, **options)
        self.samples = self.method.start(x, y)
        self.x, self.y = x, y

    def iterate(self) -> None:
        self.method.iterate(self.samples, self.x, self.y)
