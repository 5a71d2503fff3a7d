"""Digits, and MNIST and Fashion-MNIST where they are there, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from report import Setting
from torch import Tensor

from morphlightning.data import MNIST, Digits, FashionMNIST

CLASSES = 10
IMAGES = 6000
"""Training images of MNIST and Fashion-MNIST that a part takes."""


@dataclass(frozen=True)
class Images:
    """Training and test images (N, 1, H, W) in [0, 1] with their labels."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def side(self) -> int:
        return self.x.shape[-1]


def data_sets(setting: Setting, size: int) -> list[Images]:
    """The first ``size`` training images of each data set that is there; digits are small and always taken whole."""
    found = [of("digits", Digits(), 200 if setting.quick else None)]
    if setting.data_dir is not None and not setting.quick:
        for kind in (MNIST, FashionMNIST):
            module = kind(setting.data_dir / kind.__name__ / "raw", download=False)
            if module.present(train=True) and module.present(train=False):
                found.append(of(kind.__name__, module, size))
    return found


def of(name: str, module: Digits | MNIST, size: int | None) -> Images:
    x, y = module.read(train=True)
    test_x, test_y = module.read(train=False)
    white = float(module.white)
    return Images(name, x[:size].float() / white, y[:size].long(), test_x.float() / white, test_y.long())


@torch.no_grad()
def accuracy(network: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the images that are classified as labelled."""
    found = torch.cat([network(part).argmax(1) for part in x.split(1000)])
    return 100 * (found == y).double().mean().item()
