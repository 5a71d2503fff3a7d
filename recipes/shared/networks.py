"""Three networks of (batch, 1, 28, 28) images in [0, 1] with 10 logits, and their training.

``NETWORKS`` holds, by the names that tables and figures use, what builds each of them untrained.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from morphlightning.data import MNIST, FashionMNIST
from morphlightning.functional import softened
from morphlightning.layers import Dilation, DilationErosion2d, Erosion, MeanShift, MorphLayer

Samples = tuple[Tensor, Tensor]
DATA = {"mnist": MNIST, "fashion": FashionMNIST}


def morphological(filters: int = 16, terms: int = 20) -> nn.Sequential:
    """Additions of constants, maxima and minima alone: windowed dilations and erosions, then suprema of erosions.

    Increasing, exactly 1-Lipschitz in the sup norm, and a constant added to the image is added to all logits.

    Args:
        filters: Windowed dilations, and as many erosions.
        terms: Erosions of each class.
    """
    options = {"initializer": {"name": "upper", "spread": 0.35}}
    found, erosions = 2 * filters * 7 * 7, 10 * terms
    return nn.Sequential(
        DilationErosion2d(1, filters, 7, stride=4, **options),
        nn.Flatten(),
        MeanShift(found),
        Erosion(found, erosions, **options),
        MeanShift(erosions),
        Dilation(erosions, 10, initializer={"name": "sparse", "noise": 0.0, "missing": True}),
    )


def mlp(hidden: tuple[int, ...] = (256, 128)) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    network = nn.Sequential(nn.Flatten())
    for before, after in pairwise((28 * 28, *hidden)):
        network.extend([nn.Linear(before, after), nn.ReLU()])
    return network.append(nn.Linear(hidden[-1], 10))


def cnn(channels: tuple[int, ...] = (8, 16)) -> nn.Sequential:
    """For each width a convolution, ReLU and max pooling by 2; a linear layer."""
    network = nn.Sequential()
    for before, after in pairwise((1, *channels)):
        network.extend([nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)])
    side = 28 // 2 ** len(channels)
    return network.extend([nn.Flatten(), nn.Linear(channels[-1] * side * side, 10)])


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"morphological": morphological, "ReLU MLP": mlp, "CNN": cnn}


class Classifier(L.LightningModule):
    """Cross-entropy of the logits times a learned factor, by Adam with one cycle of the learning rate.

    Maxima and minima of morphological layers have the gradient of log-sum-exp, whose inverse temperature grows from 3
    to 10. The factor has no part in what the network answers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.soft = any(isinstance(module, MorphLayer) for module in network.modules())
        self.log_factor = nn.Parameter(torch.tensor(math.log(30.0 if self.soft else 1.0)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: Samples, batch_idx: int) -> Tensor:
        x, y = batch
        if self.soft:
            progress = self.global_step / int(self.trainer.estimated_stepping_batches)
            with softened(3.0 * (10.0 / 3.0) ** min(1.0, progress / 0.9), gradient_only=True):
                logits = self(x)
        else:
            logits = self(x)
        loss = F.cross_entropy(logits * self.log_factor.exp(), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Samples, batch_idx: int) -> None:
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True, batch_size=len(x))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rate = 0.03 if self.soft else 3e-3
        optimizer = torch.optim.Adam(self.parameters(), rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    network: nn.Module,
    data_dir: str,
    epochs: int = 5,
    limit: int | None = 10_000,
    seed: int = 0,
    *,
    dataset: str = "mnist",
    **options: Any,
) -> nn.Module:
    """Train in place on ``limit`` training images (None for all) and hand the network back, ready to answer.

    ``seed`` is for the order of the images; the start of the network is that of ``torch.manual_seed`` before it was
    built. ``options`` are those of the Trainer, which shows its progress, and neither logs nor validates by default.
    """
    data = DATA[dataset](data_dir, batch_size=128, val_fraction=1 / 12, train_size=limit, seed=seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its advice on GPUs, loggers and workers
    trainer = L.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": epochs} | quiet | options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        trainer.fit(Classifier(network), data)
    return network.eval().cpu()


def images(data_dir: str, limit: int | None = None, *, dataset: str = "mnist", part: str = "test") -> Samples:
    """The first ``limit`` test images (all by default) and their labels, or those of training (``part="train"``)."""
    data = DATA[dataset](data_dir, val_fraction=1 / 12)
    data.prepare_data()
    found = data.test_set() if part == "test" else data.training_sets()[0]
    rows = range(len(found))[:limit]
    x = found.clean(rows)
    return x, found.targets(rows, x[:1])


@torch.no_grad()
def accuracy(network: nn.Module, samples: Samples) -> float:
    """Share of the images that are classified rightly."""
    x, y = samples
    right = sum(int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return right / len(x)
