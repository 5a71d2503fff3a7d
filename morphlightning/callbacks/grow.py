"""Networks that grow until no subnetwork is found that would lower the objective."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from morphlightning.callbacks.whole_objective import WholeObjective
from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality import (
    Objective,
    ParallelSum,
    PolarSearch,
    arrange_optimizer_,
    certify_optimality,
    grown_slice,
)


class GrowSubnetwork(Callback):
    r"""The meta-algorithm of Haeffele and Vidal: train, append the slice that pays most, train on.

    Every n epochs slices of a :class:`ParallelSum` with a norm below ``prune`` are dropped, and the slice K that gains
    most for its price is looked for. If its polar is above ``1 + tolerance``, a multiple of it is appended, the one
    that lowers the objective most (exactly, the objective is convex in it); its optimizer state begins at 0. Else there
    is nothing left to grow, and training may stop. The network must have room: ``ParallelSum(..., capacity=...)``.

    All processes take the slice of process 0. The slices are saved with the weights, what was found with the callback.

    Args:
        every_n_epochs: How long to train between; enough to be near a stationary point.
        tolerance: By how much the polar must be above 1.
        prune: Slices of a smaller Euclidean norm are dropped; 0 for none.
        starts: Random starts of the search.
        steps: Steps of each.
        stop: Stop the fit when nothing is left to grow.
        loader: All samples in one batch; None for the training data, if they are one.

    Attributes:
        history: One mapping each time: epoch, slices, objective, polar_lower.

    Raises:
        ConfigError: Settings that cannot be; or when the fit begins, see :class:`WholeObjective`, and where the network
            has no room to grow.

    Source: Haeffele and Vidal, arXiv 1506.07540; the line search is derived here.
    """

    def __init__(
        self,
        every_n_epochs: int = 50,
        tolerance: float = 1e-3,
        prune: float = 1e-6,
        starts: int = 16,
        steps: int = 150,
        stop: bool = False,
        loader: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1 or not tolerance > 0 or prune < 0 or starts < 1 or steps < 0:
            raise ConfigError(
                f"GrowSubnetwork: every_n_epochs={every_n_epochs}, tolerance={tolerance}, prune={prune}, "
                f"starts={starts}, steps={steps}; expected every_n_epochs >= 1, tolerance > 0, prune >= 0, starts >= 1 "
                "and steps >= 0"
            )
        self.every_n_epochs, self.tolerance, self.prune, self.stop = every_n_epochs, tolerance, prune, stop
        self.search = PolarSearch(starts, steps)
        self._loader = loader
        self._whole: WholeObjective | None = None
        self.history: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the samples once, and see that there is room."""
        self._whole = WholeObjective("GrowSubnetwork", trainer, pl_module, self._loader)
        network = self._whole.network
        if network.capacity == 1 or (network.count == network.capacity and not self.history):
            raise ConfigError(
                f"GrowSubnetwork: all {network.capacity} slices are taken; build the ParallelSum with a larger capacity"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune and grow."""
        if self._whole is None or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        network = self._whole.network
        self._prune(trainer, network)
        grown = trainer.strategy.broadcast(self._next(trainer, self._whole.now()))
        if grown is None:
            trainer.should_stop = trainer.should_stop or self.stop
        elif network.count == network.capacity:
            rank_zero_warn(
                f"GrowSubnetwork: a slice would lower the objective, and all {network.capacity} are taken; build the "
                "ParallelSum with a larger capacity"
            )
        else:
            kept = list(range(network.count))
            network.append(grown)
            for optimizer in trainer.optimizers:
                arrange_optimizer_(optimizer, network, kept)

    def _next(self, trainer: Trainer, objective: Objective) -> dict[str, Any] | None:
        """The slice to append, None where none pays; written down."""
        report = certify_optimality(objective, self.search)
        self.history.append(
            {
                "epoch": float(trainer.current_epoch),
                "slices": float(report.slices),
                "objective": report.objective,
                "polar_lower": report.polar_lower,
            }
        )
        return grown_slice(objective, report.direction) if report.polar_lower > 1 + self.tolerance else None

    def _prune(self, trainer: Trainer, network: ParallelSum) -> None:
        kept = (network.norms() >= self.prune).nonzero()[:, 0].tolist()
        if len(kept) < network.count:
            network.arrange(kept)
            for optimizer in trainer.optimizers:
                arrange_optimizer_(optimizer, network, kept)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the samples go."""
        self._whole = None

    def state_dict(self) -> dict[str, Any]:
        """What was found."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.history = list(state_dict["history"])
