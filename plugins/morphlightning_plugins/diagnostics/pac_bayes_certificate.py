"""A bound on the error that follows from margins and from how few taps ever win."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from morphlightning.callbacks.random_state import capture, restore
from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.information import Evidence, PACBayes, RiskBound, TapChain, Taps, evidence
from morphlightning.interfaces import API_VERSION

TOGETHER = 500
"""Samples that pass the network together."""


class PACBayesCertificate(Callback):
    r"""PAC-Bayes bounds on the probability of error, in closed form, from all training samples.

    With probability at least 1 - ``delta`` over the draw of the m training samples, a fresh sample of the same
    distribution is classified wrongly with at most the probability

    - ``diagnostics/pac_bayes_certificate/gibbs``: by a network whose weights are drawn anew from the posterior;
    - ``.../deterministic``: by the network itself.

    Each holds by itself. Beside them it logs what they are made of: ``.../samples`` (m), ``.../train_error``,
    ``.../gamma`` (the margin that the first uses), ``.../margin_error`` (share of training samples with smaller
    margins), ``.../bits`` and ``.../deterministic_bits`` (information of the posterior), ``.../winning_taps`` and
    ``.../taps``. See :class:`morphlightning.guarantees.information.PACBayes` for what is proved and paid for.

    The network is ``module.hardened()`` where there is such a method, else ``module.network``, else the module; it has
    to be a chain of max-plus layers (:class:`morphlightning.guarantees.information.TapChain`), which is looked at when
    the fit begins. The samples are those of the training loader's dataset, each once and whether or not batches were
    limited, shared out among processes; a dataset that draws random numbers is read as it answers then. The last bounds
    are in ``bounds``, all in ``history``, and they are printed when the fit ends.

    Cost: one pass over the training samples in float64, and one over the weights for each prior and margin.

    Args:
        every_n_epochs: Certify at the end of each such epoch; None for that of the last alone.
        delta: One minus the confidence.
        alternatives: Number of designs among which this one was chosen with a view to the training samples.
        subset: Certify on so many samples, the first ones, and say so: m is then their number. None for all.
        prog_bar: Show ``gibbs`` in the progress bar too.

    Raises:
        ConfigError: Settings that cannot be.
        NotCertifiable: When the fit begins: a layer for which nothing was derived; the message names it.
        DataError: The training data have no length, or fewer samples than ``subset``.

    Source: derived in docs/guarantees.md.
    """

    api_version: ClassVar[str] = API_VERSION
    reads: frozenset[str] = frozenset()
    name: ClassVar[str] = "pac_bayes_certificate"

    def __init__(
        self,
        every_n_epochs: int | None = None,
        delta: float = 0.05,
        alternatives: int = 1,
        subset: int | None = None,
        prog_bar: bool = False,
    ) -> None:
        super().__init__()
        if (every_n_epochs is not None and every_n_epochs < 1) or (subset is not None and subset < 1):
            raise ConfigError(
                f"{self.name}: every_n_epochs and subset must be >= 1 or None, got {every_n_epochs} and {subset}"
            )
        self.every_n_epochs, self.subset, self.prog_bar = every_n_epochs, subset, prog_bar
        self.how = PACBayes(delta=delta, alternatives=alternatives)
        self.bounds: dict[str, RiskBound] = {}
        self.history: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network that has no bound."""
        self.bounds = {}
        TapChain(_network(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Certify where it is due."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if not last and (self.every_n_epochs is None or epoch % self.every_n_epochs):
            return
        chain = TapChain(_network(pl_module))
        random = capture(pl_module.device)
        try:
            seen = _of_all_processes(trainer, evidence(chain, self._samples(trainer)))
        finally:
            restore(random, pl_module.device)
        gibbs, deterministic = (self.how.bound(chain, seen, kind) for kind in ("gibbs", "deterministic"))
        self.bounds = {"gibbs": gibbs, "deterministic": deterministic}
        winning = sum(int(taps.winning.sum()) for taps in seen.taps.values())
        found = {
            "gibbs": gibbs.value,
            "deterministic": deterministic.value,
            "samples": float(seen.samples),
            "train_error": seen.errors / seen.samples,
            "gamma": gibbs.gamma,
            "margin_error": gibbs.empirical,
            "bits": gibbs.bits,
            "deterministic_bits": deterministic.bits,
            "winning_taps": float(winning),
            "taps": float(sum(int(layer.mask.sum()) for layer in chain.layers.values())),
        }
        for key, value in found.items():
            pl_module.log(f"diagnostics/{self.name}/{key}", value, prog_bar=self.prog_bar and key == "gibbs")
        self.history.append({"epoch": float(trainer.current_epoch), **found})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last bounds."""
        if self.bounds:
            rank_zero_info(f"{self.name}: {self._summary()}")

    def state_dict(self) -> dict[str, Any]:
        """What was found."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.history = list(state_dict["history"])

    def _summary(self) -> str:
        gibbs, deterministic = self.bounds["gibbs"], self.bounds["deterministic"]
        what = f"{'the first' if self.subset else 'all'} {gibbs.samples} training samples"
        return (
            f"with confidence {1 - gibbs.delta:.3g}, from {what}: the error is at most {gibbs.value:.4f} with drawn "
            f"weights ({gibbs.bits:.0f} bits), {deterministic.value:.4f} with its own ({deterministic.bits:.0f} bits)"
        )

    def _samples(self, trainer: Trainer) -> Iterator[list[Tensor]]:
        """This process's share of the training samples, each sample once on one of the processes."""
        loader: Any = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            raise DataError(
                f"{self.name}: the bound is for a known number of training samples, and the training data "
                f"({type(loader).__name__}) have no length; train with a DataLoader over a map-style dataset"
            )
        count = len(dataset) if self.subset is None else self.subset
        if count > len(dataset):
            raise DataError(f"{self.name}: subset={count}, but there are {len(dataset)} training samples")
        return iter(
            DataLoader(
                dataset,  # type: ignore[arg-type]
                TOGETHER,
                sampler=list(range(trainer.global_rank, count, trainer.world_size)),
                collate_fn=loader.collate_fn,
                generator=torch.Generator(),  # so that torch's global one is not asked for a seed
            )
        )


def _network(module: LightningModule) -> nn.Module:
    hardened: Any = getattr(module, "hardened", None)
    if callable(hardened):
        network: nn.Module = hardened()
        return network
    own = getattr(module, "network", None)
    return own if isinstance(own, nn.Module) else module


def _of_all_processes(trainer: Trainer, seen: Evidence) -> Evidence:
    """What all processes have seen together."""

    def reduced(value: Tensor, how: str) -> Tensor:
        found = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op=how)
        return torch.as_tensor(found)

    counts = reduced(torch.cat([seen.failures, torch.tensor([seen.errors, seen.samples])]), "sum").cpu()
    taps = {
        name: Taps(reduced(taps.wins, "sum"), reduced(taps.ceiling, "min")) for name, taps in sorted(seen.taps.items())
    }
    return Evidence(int(counts[-1]), seen.gammas, counts[:-2], int(counts[-2]), taps)
