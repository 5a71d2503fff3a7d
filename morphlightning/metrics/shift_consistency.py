"""How often a classifier answers the same for shifted images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.guarantees.stability.defects import Network, check_images, evaluating
from morphlightning.guarantees.stability.fields import Deformation
from morphlightning.guarantees.stability.warp import deform


class ShiftConsistency(Metric):
    r"""Agreement of predicted classes under all shifts by up to ``shift`` pixels along each axis.

    With :math:`c(x) = \arg\max_k f_k(x)` and the shifts v other than 0 with :math:`|v|_\infty \le s`, of N images,

    - ``mean``: :math:`\frac{1}{N} \sum_x \frac{1}{|V|} \sum_{v} [c(T_v x) = c(x)]`,
    - ``all``: share of images whose class is the same under all of them.

    Pixels that come in at the border have the value of the nearest one that was there. It is a property of predictions,
    right and wrong ones alike: a constant classifier has 1. The network is run in evaluation mode.

    Args:
        shift: s, at least 1; there are :math:`(2s + 1)^2 - 1` shifts, and as many passes through the network.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: A shift below 1.

    Source: definition of our own.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    agreeing: Tensor
    unmoved: Tensor
    count: Tensor

    def __init__(self, shift: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if shift < 1:
            raise ConfigError(f"ShiftConsistency: shift={shift}, expected pixels >= 1")
        around = range(-shift, shift + 1)
        self.shifts = [(x, y) for y in around for x in around if x or y]
        for state in ("agreeing", "unmoved", "count"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, network: Network, images: Tensor) -> None:
        """Add a batch.

        Args:
            network: A classifier, from images to logits (batch, classes).
            images: (batch, channels, height, width), floating-point.

        Raises:
            ShapeError: These are no images, or the network does not answer with logits.
            DtypeError: Images that are not floating-point.
        """
        check_images("ShiftConsistency", images)
        with evaluating(network):
            classes = _classes(network, images)
            kept = torch.stack([_classes(network, _shifted(images, shift)) == classes for shift in self.shifts])
        self.agreeing += kept.sum()
        self.unmoved += kept.all(0).sum()
        self.count += len(images)

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``all``, scalars."""
        return {"mean": self.agreeing / (self.count * len(self.shifts)), "all": self.unmoved / self.count}


def _shifted(images: Tensor, shift: tuple[int, int]) -> Tensor:
    tau = torch.tensor(shift, dtype=torch.float32, device=images.device).view(1, 2, 1, 1)
    return deform(images, Deformation(tau.expand(1, 2, *images.shape[2:])))


def _classes(network: Network, images: Tensor) -> Tensor:
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"ShiftConsistency: {shape} from the network, expected logits (batch, classes)")
    return logits.argmax(1)
