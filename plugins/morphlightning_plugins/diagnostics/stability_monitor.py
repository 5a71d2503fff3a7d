"""What a network that trains makes of deformed, shifted and brightened validation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from morphlightning.errors import ConfigError, MorphLightningError
from morphlightning.guarantees.stability import Change
from morphlightning.guarantees.stability.fields import Kind
from morphlightning.interfaces import API_VERSION
from morphlightning.metrics import DeformationStability, EquivarianceDefect, ShiftConsistency


class StabilityMonitor(Callback):
    r"""Stability to deformations, equivariance layer by layer, and agreement under shifts, of validation images.

    At the end of a validation it logs, of ``module.network`` where there is one, else of the module itself,

    - ``diagnostics/stability/D@<kappa>``, ``.../G@<kappa>``, ``.../R@<kappa>`` and ``.../C<percent>@<kappa>``: see
      :class:`morphlightning.metrics.DeformationStability`;
    - ``.../<group>/<layer>``: the relative defect of each layer and of the ``network``, see
      :class:`morphlightning.metrics.EquivarianceDefect`. A layer that claims to commute and does not fails the run;
    - ``.../shift_consistency``: see :class:`morphlightning.metrics.ShiftConsistency`; where outputs are logits.

    They are those of the first ``batches`` batches of each process. The same images are deformed by the same fields in
    each epoch. Where a network cannot be measured there is one warning, and nothing is logged for the rest of the fit.

    Cost of a batch: 1 + 2 passes of the network for each gradient, 5 for each group (2 with ``per_layer=False``) and
    :math:`(2 s + 1)^2` for shifts of up to s pixels; with ``per_layer`` the inputs of all layers are kept.

    Args:
        gradients: Values of :math:`\kappa = \sup|\nabla\tau|`, in (0, 1).
        groups: Changes with which layers are asked to commute: shift, contrast, brightness, gain, sup, inf.
        shift: Largest shift of ``shift_consistency`` in pixels; 0 for none.
        kind: Of the displacement fields.
        every_n_epochs: Measure in the validations of each such epoch.
        batches: Validation batches that are measured.
        per_layer: Measure layers, not the network alone.
        prog_bar: Show the first D in the progress bar too.
        seed: Of the fields.

    Raises:
        ConfigError: Settings that cannot be.
        BrokenCertificateError: A layer that claims to commute with a change does not.

    Source: the metrics.
    """

    api_version: ClassVar[str] = API_VERSION
    reads: frozenset[str] = frozenset()
    name: ClassVar[str] = "stability"

    def __init__(
        self,
        gradients: Sequence[float] = (0.1, 0.3),
        groups: Sequence[Change] = ("shift", "brightness"),
        shift: int = 1,
        kind: Kind = "max_entropy",
        every_n_epochs: int = 1,
        batches: int = 4,
        per_layer: bool = True,
        prog_bar: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1 or batches < 1 or shift < 0:
            raise ConfigError(
                f"{self.name}: expected every_n_epochs >= 1, batches >= 1 and shift >= 0, got {every_n_epochs}, "
                f"{batches} and {shift}"
            )
        self.every_n_epochs, self.batches, self.prog_bar = every_n_epochs, batches, prog_bar
        self._metrics: dict[str, Metric] = {"": DeformationStability(gradients, kind, seed=seed)}
        self._metrics |= {group: EquivarianceDefect(group, per_layer=per_layer) for group in groups}
        if shift:
            self._metrics["shift_consistency"] = ShiftConsistency(shift)
        self._off, self._ever = False, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try anew."""
        self._off, self._ever = False, False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        for metric in self._metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the batch."""
        if self._off or dataloader_idx or batch_idx >= self.batches or not self._due(trainer):
            return
        images = batch[0] if isinstance(batch, list | tuple) else batch
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices, device_type="cuda"), trainer.precision_plugin.forward_context():
                self._measure(pl_module, images)
        except MorphLightningError as error:
            self._off = True
            rank_zero_warn(f"{self.name} is turned off for the rest of this fit: {error}")
        self._ever = True

    def _measure(self, pl_module: LightningModule, images: Tensor) -> None:
        own = getattr(pl_module, "network", None)
        network = own if isinstance(own, nn.Module) else pl_module
        are_logits = network(images).ndim == 2
        for kind, metric in self._metrics.items():
            if are_logits or kind != "shift_consistency":
                metric.update(network, images)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what came out; on all processes the same."""
        measured = {} if self._off else {kind: m for kind, m in self._metrics.items() if m.update_called}
        for kind, metric in measured.items():
            for key, value in metric.compute().items():
                name = self._key(kind, key)
                if name is not None:
                    telling = self.prog_bar and key.startswith("D@")
                    pl_module.log(f"diagnostics/{self.name}/{name}", value, prog_bar=telling, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where there was nothing to measure."""
        if not self._ever:
            rank_zero_warn(f"{self.name}: nothing was logged, for no validation was due; it needs validation images")

    @staticmethod
    def _key(kind: str, key: str) -> str | None:
        """Under which name a value of a metric is logged; None where it is not."""
        if not kind:
            return key
        if kind == "shift_consistency":
            return kind if key == "mean" else None
        layer, _, number = key.rpartition("/")
        return f"{kind}/{layer}" if number == "relative" else None

    def _due(self, trainer: Trainer) -> bool:
        alone = trainer.state.fn == TrainerFn.VALIDATING  # not inside a fit
        return not trainer.sanity_checking and (alone or (trainer.current_epoch + 1) % self.every_n_epochs == 0)
