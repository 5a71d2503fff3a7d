"""Whether the Lipschitz constant of a network that trains is what its layers promise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from morphlightning.errors import BrokenCertificateError, ConfigError, MorphLightningError
from morphlightning.lipschitz import Certificate, SteepestPair, certify, falsify
from morphlightning.lipschitz.spec import Measured
from morphlightning_plugins.diagnostics.base import PeriodicDiagnostic

TOLERANCE = 1e-6
"""Relative, for the rounding of both sides in float64."""


class LipschitzAudit(PeriodicDiagnostic):
    r"""The certified Lipschitz constant of the network beside the steepest pair of inputs that an attack finds.

    Of the network after the step, in evaluation mode (``module.network`` where there is one, else the module itself),
    it logs

    - ``diagnostics/lipschitz_audit/certified``: an upper bound of :math:`\|f(x) - f(y)\| / \|x - y\|` over all inputs,
      the product of the constants of its layers (:func:`morphlightning.lipschitz.certify`);
    - ``.../found``: the largest such ratio found by ascent from pairs of the batch of the step
      (:func:`morphlightning.lipschitz.falsify`), a lower bound of it; the largest of all processes.

    Both are for the network in exact arithmetic, computed in float64, of the numbers of a sample in ``norm``. A ratio
    above the bound means that a layer's constant is wrong: the fit fails, on all processes. Where a layer has no
    constant there is one warning, which names it, and nothing is logged for the rest of the fit.

    Cost at each measured step: the constants (for convolutions, singular values of their symbols), a copy of the
    network in float64, and ``steps`` + 1 forward and backward passes of it over 3 ``samples`` inputs.

    Args:
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show ``certified`` in the progress bar too.
        norm: In which inputs are measured, ``linf`` or ``l2``. Outputs are measured in the same, or in linf behind
            layers that bound that alone.
        samples: At most so many samples of the batch.
        steps: Steps of ascent.

    Raises:
        ConfigError: Settings that cannot be.
        BrokenCertificateError: A pair contradicts the constant; the message has those of all layers.

    Source: derived here.
    """

    name: ClassVar[str] = "lipschitz_audit"

    def __init__(
        self,
        every_n_steps: int = 500,
        prog_bar: bool = False,
        norm: Measured = "linf",
        samples: int = 32,
        steps: int = 10,
    ) -> None:
        super().__init__(every_n_steps, prog_bar)
        if norm not in ("linf", "l2") or samples < 1 or steps < 0:
            raise ConfigError(
                f"lipschitz_audit: expected norm 'linf' or 'l2', samples >= 1 and steps >= 0, got {norm!r}, {samples} "
                f"and {steps}"
            )
        self.norm: Measured = norm
        self.samples, self.steps = samples, steps
        self._measured, self._off = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try anew."""
        self._measured, self._off = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a step that was due has been taken."""
        step = trainer.global_step
        if self._off or step == self._measured or step % self.every_n_steps:
            return
        self._measured = step
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        try:
            certificate, pair = self._measure(pl_module, inputs)
        except MorphLightningError as error:
            self._off = True
            rank_zero_warn(f"{self.name} is turned off for the rest of this fit: {error}")
            return
        found = torch.tensor(pair.ratio, dtype=torch.float64, device=pl_module.device)
        found = torch.as_tensor(trainer.strategy.reduce(found, reduce_op="max"))
        self.record(pl_module, "certified", found.new_tensor(certificate.constant), telling=True)
        self.record(pl_module, "found", found)
        if found > certificate.constant * (1 + TOLERANCE):
            raise BrokenCertificateError(
                f"{self.name}: at step {step} two inputs are moved apart by the factor {float(found):.6g}, above the "
                f"certified {certificate.constant:.6g}; the constant of a layer is wrong:\n{certificate}"
            )

    def _measure(self, pl_module: LightningModule, inputs: Tensor) -> tuple[Certificate, SteepestPair]:
        own = getattr(pl_module, "network", None)
        network = own if isinstance(own, nn.Module) else pl_module
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            certificate = certify(network, self.norm)
            outputs: Measured = "linf" if certificate.spec.norm_out == "linf" else self.norm
            return certificate, falsify(network, inputs[: self.samples], self.norm, outputs, self.steps)
        finally:
            for module, mode in modes:
                module.training = mode
