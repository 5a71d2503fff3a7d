"""How far the network is from the global optimum, as far as that can be proved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from morphlightning.callbacks.whole_objective import WholeObjective
from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality import OptimalityReport, PolarSearch, certify_optimality
from morphlightning.interfaces import API_VERSION

CODES = {"certified": 1.0, "unknown": 0.0, "refuted": -1.0}


class GlobalOptimalityCertificate(Callback):
    r"""Certified distance of a sum of homogeneous subnetworks to its global optimum, or a slice that refutes it.

    At the end of a validation in a fit, for the objective F = loss + ``matched_decay`` of one fixed set of samples,
    seen whole, and its least value F* over networks with any number of slices, it logs

    - ``diagnostics/optimality_certificate/polar_lower``: what the best slice found would gain over its price; above 1
      one more slice lowers F, so that F is not F*;
    - ``.../polar_upper``: an upper bound of it, where the subnetwork knows one;
    - ``.../gap_certified``, ``.../excess_certified``: F - F* and (F - F*) / F* are at most this. Only where there is a
      ``polar_upper``;
    - ``.../gap_estimated``: elsewhere, what the gap were if the search had found the best slice. It proves nothing;
    - ``.../slice_balance_max``: how far from stationary the scale of a slice is, at most; ``.../zero_slices``;
    - ``.../verdict``: 1 certified (the excess is at most ``tolerance``), -1 refuted, 0 unknown.

    A network that is balanced and has zero slices may be far from optimal; the polar tells. A refuted one may be the
    best of its number of slices. Everything is computed in float64 and summed over processes. The last report is in
    ``report``, with the direction that refutes; all are in ``history``. It is printed when the fit ends.

    Cost: ``starts * steps`` forward and backward passes of a subnetwork over the samples.

    Args:
        every_n_epochs: Certify at each such validation.
        weight: lambda, to be sure of it; None for that of ``matched_decay``.
        degree: The degree of the subnetworks, to be sure of it; None for any.
        tolerance: Within which share of F* F counts as certified.
        starts: Random starts of the search for a better slice.
        steps: Steps of each.
        loader: All samples to certify on in one batch, a DataLoader or an iterable; None for the training data.
        prog_bar: Show ``excess_certified`` or ``polar_lower`` in the progress bar too.

    Raises:
        ConfigError: When the fit begins: the samples come in minibatches, lambda or degree do not match, the module
            holds no ParallelSum, or something else trains, decays or penalizes; see
            :class:`morphlightning.callbacks.WholeObjective`.

    Source: Haeffele and Vidal, arXiv 1506.07540; the gap is derived in docs/guarantees.md.
    """

    api_version: ClassVar[str] = API_VERSION
    reads: frozenset[str] = frozenset()
    name: ClassVar[str] = "optimality_certificate"

    def __init__(
        self,
        every_n_epochs: int = 1,
        weight: float | None = None,
        degree: int | None = None,
        tolerance: float = 0.01,
        starts: int = 16,
        steps: int = 150,
        loader: Iterable[Any] | None = None,
        prog_bar: bool = False,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1 or starts < 1 or steps < 0 or not tolerance > 0:
            raise ConfigError(
                f"{self.name}: every_n_epochs={every_n_epochs}, starts={starts}, steps={steps}, tolerance={tolerance}; "
                "expected every_n_epochs >= 1, starts >= 1, steps >= 0 and tolerance > 0"
            )
        self.every_n_epochs, self.tolerance, self.prog_bar = every_n_epochs, tolerance, prog_bar
        self.search = PolarSearch(starts, steps)
        self._asked = {"loader": loader, "weight": weight, "degree": degree}
        self._whole: WholeObjective | None = None
        self.report: OptimalityReport | None = None
        self.history: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the samples once, and refuse what has no certificate."""
        self._whole = WholeObjective(self.name, trainer, pl_module, **self._asked)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Certify."""
        if self._whole is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with torch.inference_mode(False):  # gradients are needed
            self.report = certify_optimality(self._whole.now(), self.search, self.tolerance)
        found = logged(self.report)
        telling = "excess_certified" if "excess_certified" in found else "polar_lower"
        for key, value in found.items():
            pl_module.log(f"diagnostics/{self.name}/{key}", value, prog_bar=self.prog_bar and key == telling)
        self.history.append({"epoch": float(trainer.current_epoch), **found})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last report, and let the samples go."""
        self._whole = None
        if self.report is not None:
            rank_zero_info(f"{self.name}: {self.report}")

    def state_dict(self) -> dict[str, Any]:
        """What was found."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.history = list(state_dict["history"])


def logged(report: OptimalityReport) -> dict[str, float]:
    """The numbers of a report by the names under which they are logged; what is not certified has none that says so."""
    found = {
        "objective": report.objective,
        "slices": float(report.slices),
        "slice_balance_max": report.balance_max,
        "zero_slices": float(report.zero_slices),
        "polar_lower": report.polar_lower,
        "verdict": CODES[report.verdict],
    }
    if report.polar_upper is None or report.gap is None or report.excess is None:
        return found | {"gap_estimated": report.gap_estimated}
    return found | {
        "polar_upper": report.polar_upper,
        "gap_certified": report.gap,
        "excess_certified": report.excess,
    }
