"""How much of a max-plus layer its gradient reaches."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from morphlightning.errors import ConfigError
from morphlightning.interfaces import API_VERSION
from morphlightning.layers.site import reduce_statistics, sites


class GradientDensity(Callback):
    """Share of each layer's weights that some message touched in a step, and of weights never touched in the epoch.

    Logged every ``every_n_steps`` optimizer steps as ``diagnostics/gradient_density/<layer>``, summed over processes,
    and as ``diagnostics/gradient_density/<layer>/dead`` at the end of each epoch. A max-plus layer sends each message
    to one weight, so its gradient is sparse; a low density is what makes deep stacks slow to train. Cost: one scatter
    and one collective of the weights' size a step.

    Source: derived in docs/conventions.md, "Gradient density"; that sparsity of the gradient limits such layers is the
    finding of Dimitrova, Blusseau and Velasco-Forero (2026).
    """

    api_version: ClassVar[str] = API_VERSION
    reads: frozenset[str] = frozenset({"count"})

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigError(f"gradient_density: every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._touched: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask all layers for touch counts."""
        for _, site in sites(pl_module):
            site.read(self.reads)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget which weights were touched."""
        self._touched = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Look at the counts of this step."""
        for name, statistics in reduce_statistics(pl_module).items():
            touched = statistics["count"] > 0
            self._touched[name] = touched | self._touched.get(name, torch.zeros_like(touched))
            if trainer.global_step % self.every_n_steps == 0:
                pl_module.log(f"diagnostics/gradient_density/{name}", touched.float().mean())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of weights that nothing touched."""
        for name, touched in self._touched.items():
            pl_module.log(f"diagnostics/gradient_density/{name}/dead", (~touched).float().mean())
