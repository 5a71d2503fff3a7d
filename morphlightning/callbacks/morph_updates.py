"""Update heuristics for LightningModules that are not morphlightning's own."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from morphlightning.layers import apply_update_heuristics


class MorphUpdates(Callback):
    """Hands the gradients of max-plus layers through their update heuristics before each optimizer step.

    ``Trainer(callbacks=[MorphUpdates()])`` makes heuristics such as ``count_normalized`` act in any LightningModule
    that holds layers of morphlightning. Gradients are reduced over processes and unscaled by then, and not yet clipped.
    morphlightning's own models (``PluginTraining``) do this themselves, so here the callback leaves them alone.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Apply the heuristics."""
        if not getattr(pl_module, "applies_update_heuristics", False):
            apply_update_heuristics(pl_module, optimizer)
