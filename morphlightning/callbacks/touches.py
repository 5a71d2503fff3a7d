"""What all callbacks that look at touch counts share: layers count while a fit lasts, and no longer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from morphlightning.layers.site import Site, reduce_statistics, sites


class TouchCounts(Callback):
    """Part of the callbacks that see how many rows sent a message to each weight.

    Counts are summed over micro-batches and processes, in one collective for all callbacks and update heuristics.

    Attributes:
        counting: The layers that count, by name.
        touches: Their counts of this epoch, float64 in the shapes of the weights.
    """

    reads: frozenset[str] = frozenset({"count"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counting: dict[str, Site] = {}
        self.touches: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask all layers for touch counts."""
        self.counting = dict(sites(pl_module))
        for site in self.counting.values():
            site.read(self.reads)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch anew."""
        self.touches = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the counts of this step."""
        for name, statistics in reduce_statistics(pl_module).items():
            self.touches[name] = self.touches.get(name, 0) + statistics["count"]

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Counts are gradients: a step's end with its gradients, also where nobody applies update heuristics."""
        for site in self.counting.values():
            site.clear()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the layers stop counting."""
        for site in self.counting.values():
            site.release(self.reads)
        self.counting = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same where a fit was broken off."""
        self.on_fit_end(trainer, pl_module)
