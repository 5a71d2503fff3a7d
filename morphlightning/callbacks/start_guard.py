"""A warning before hours of training from a start that cannot learn."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from morphlightning.errors import TrainingWarning
from morphlightning.layers import starts


class StartGuard(Callback):
    """Warns, once a fit, of what keeps max-plus weights from learning; changes nothing.

    At the start of training: weights that an optimizer decays. Where training is fresh, not resumed: dense layers whose
    units all start equal, and, by the first batch, dense layers whose weights spread so far that few inputs can win.

    Cost: two passes over the weights of dense layers, and over their inputs in the first batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._wide: dict[str, None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizers and the weights."""
        decayed = [name for optimizer in trainer.optimizers for name in starts.decayed(pl_module, optimizer)]
        if decayed:
            _warn(
                f"weight decay acts on the max-plus weights of {_listed(decayed)}: it pulls them to 0, where they do "
                "not vanish but win; put them into a parameter group with weight_decay=0"
            )
        if trainer.global_step:
            return
        equal = [name for name, layer in starts.dense_layers(pl_module) if starts.all_units_equal(layer)]
        if equal:
            _warn(
                f"all units of {_listed(equal)} start with the same weights, so they choose the same inputs and learn "
                "alike; start with a small spread, such as initializer='upper'"
            )
        for name, layer in starts.dense_layers(pl_module):
            self._look_once(name, layer)

    def _look_once(self, name: str, layer: torch.nn.Module) -> None:
        """At the first inputs in training; a diagnostic may run the batch again."""

        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            if layer.training and not torch.compiler.is_compiling():
                handle.remove()
                if starts.few_can_win(layer, args[0]):
                    self._wide[name] = None

        handle = layer.register_forward_pre_hook(hook)
        self._handles.append(handle)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Say what the first batch showed."""
        self._release()
        wide, self._wide = list(self._wide), {}
        if wide:
            _warn(
                f"the weights of {_listed(wide)} spread far wider than the inputs vary, so in most units only few "
                "inputs can ever win; use a smaller spread, such as initializer='upper', or normalize the inputs"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _warn(message: str) -> None:
    rank_zero_warn(message, category=TrainingWarning)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more layers"
