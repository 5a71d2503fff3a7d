"""How much of a max-plus layer its gradient reaches."""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from morphlightning.callbacks import TouchCounts
from morphlightning.layers.site import reduce_statistics
from morphlightning_plugins.diagnostics.base import PeriodicDiagnostic


class GradientDensity(TouchCounts, PeriodicDiagnostic):
    """Share of each layer's weights that some message touched in a step, and of weights and rows dead in an epoch.

    Of the weights that are there (not -inf), with messages summed over micro-batches and processes, it logs

    - ``diagnostics/gradient_density/<layer>``: share touched in this step;
    - ``.../<layer>/touched``: their number;
    - ``.../<layer>/dead``: at the end of each epoch, share that no step of the epoch touched;
    - ``.../<layer>/dead_rows``: share of the layer's output units of which that holds for every weight.

    A max-plus layer sends each message to one weight, so its gradient is sparse; a low density is what makes deep
    stacks slow to train. Cost: one scatter and one collective of the weights' size a step.

    Args:
        every_n_steps: Log the density at each such number of optimizer steps.
        prog_bar: Show the density in the progress bar too.

    Source: derived in docs/conventions.md, "Gradient density"; that sparsity of the gradient limits such layers is the
    finding of Dimitrova, Blusseau and Velasco-Forero (2026).
    """

    name: ClassVar[str] = "gradient_density"

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__(every_n_steps, prog_bar)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count, and log the density of this step."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self.due(trainer):
            return
        for name, statistics in reduce_statistics(pl_module).items():
            touched = (statistics["count"] > 0).sum()
            self.record(pl_module, name, touched / self.counting[name].mask.sum(), telling=True)
            self.record(pl_module, f"{name}/touched", touched.float())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what nothing touched."""
        for name, touches in self.touches.items():
            alive = touches > 0
            self.record(pl_module, f"{name}/dead", 1 - alive.sum() / self.counting[name].mask.sum(), sync_dist=True)
            self.record(pl_module, f"{name}/dead_rows", (~alive.flatten(1).any(1)).double().mean(), sync_dist=True)
