"""What all diagnostics share: when they measure, under which name they log, and what they do where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from morphlightning.errors import ConfigError, MorphLightningError
from morphlightning.interfaces import API_VERSION
from morphlightning_plugins.diagnostics.replay import Replay


class PeriodicDiagnostic(Callback):
    """Base of the diagnostics that measure at every n-th optimizer step.

    Steps are counted as Lightning counts those of ``log_every_n_steps``: with n = 50 the 50th, 100th, ... step.

    Args:
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show the most telling value in the progress bar too.

    Raises:
        ConfigError: every_n_steps is below 1.
    """

    api_version: ClassVar[str] = API_VERSION
    reads: frozenset[str] = frozenset()
    name: ClassVar[str]

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigError(f"{self.name}: every_n_steps must be >= 1, got {every_n_steps}")
        self.every_n_steps, self.prog_bar = every_n_steps, prog_bar

    def due(self, trainer: Trainer) -> bool:
        """Whether the step that is being taken is to be measured; the same on all processes."""
        return (trainer.global_step + 1) % self.every_n_steps == 0

    def record(
        self, module: LightningModule, key: str, value: Tensor, telling: bool = False, sync_dist: bool = False
    ) -> None:
        """Log one value under ``diagnostics/<name>/<key>``; the mean over processes with ``sync_dist``."""
        module.log(f"diagnostics/{self.name}/{key}", value, prog_bar=telling and self.prog_bar, sync_dist=sync_dist)


class ReplayDiagnostic(PeriodicDiagnostic):
    """Base of the diagnostics that run the batch of the measured step once more; of several micro-batches the last.

    Where the network cannot be measured (a module that the calculus does not know, a module without ``forward``) there
    is one warning, and nothing is logged for the rest of the fit.
    """

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__(every_n_steps, prog_bar)
        self._replay: Replay | None = None
        self._off = False

    def before_step(self, trainer: Trainer, module: LightningModule, replay: Replay) -> None:
        """Measure with the parameters of the forward pass; to be overridden."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try anew."""
        self._replay, self._off = None, False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what the step will be made of."""
        if self.due(trainer) and not self._off:
            self._replay = Replay(trainer, pl_module, batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure where the step is due."""
        replay, self._replay = self._replay, None
        if replay is not None:
            with self.or_turned_off():
                self.before_step(trainer, pl_module, replay)

    @contextmanager
    def or_turned_off(self) -> Iterator[None]:
        """Turn a measurement that is not possible into a warning, and make no other one."""
        try:
            yield
        except (MorphLightningError, NotImplementedError) as error:
            self._off = True
            rank_zero_warn(f"{self.name} is turned off for the rest of this fit: {error}")


class StepDiagnostic(ReplayDiagnostic):
    """Base of the diagnostics that compare the parameters before and after the measured step."""

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__(every_n_steps, prog_bar)
        self._before: tuple[Replay, dict[str, Tensor]] | None = None

    def after_step(self, trainer: Trainer, module: LightningModule, replay: Replay, before: dict[str, Tensor]) -> None:
        """Measure the step that has been taken; to be overridden.

        Args:
            trainer: The Trainer.
            module: The module, with the parameters after the step.
            replay: The batch of the step.
            before: The parameters before the step that train, by name.
        """

    def before_step(self, trainer: Trainer, module: LightningModule, replay: Replay) -> None:
        """Copy the parameters."""
        parameters = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        self._before = replay, parameters

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure where a step that was due has been taken."""
        before, self._before = self._before, None
        if before is not None:
            with self.or_turned_off():
                self.after_step(trainer, pl_module, *before)
