"""A lifted method as a manual-optimization loop: what Lightning sees of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from morphlightning.bregman.chain import Chain
from morphlightning.bregman.losses import OutputLoss, output_loss
from morphlightning.bregman.method import Method, Samples
from morphlightning.bregman.optimizer import LiftedOptimizer
from morphlightning.bregman.samples import STORAGES, SampleStore, Storage, select
from morphlightning.errors import TrainingWarning
from morphlightning.interfaces import Batch, Group, Loop, StepContext, TrainerFacts, TrainingData

POLICIES = ("gather", "shards", "none")
_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_SUM = "sum "


@dataclass
class LiftedLoop(Loop):
    """Trains a chain of affine layers and proximal activations by a method that ``make`` builds.

    Where an iteration needs all samples, it is one pass through the training data, in one batch or in many.

    Args:
        checkpoints: Where auxiliary variables are saved, see ``Loop.aux_policy``. With ``none`` they begin again with a
            forward pass when a run resumes.
        storage: Where they live between iterations: ``device``, ``cpu`` or ``memmap``.
        monitor_every: Every so many iterations the loss of the forward pass, the objective, the gaps and the residuals
            are logged, as they stand before the iteration.
    """

    checkpoints: Literal["gather", "shards", "none"] = "gather"
    storage: Storage = "device"
    monitor_every: int = 10

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.checkpoints not in POLICIES:
            raise ValueError(f"checkpoints must be one of {', '.join(POLICIES)}, got {self.checkpoints!r}")
        if self.storage not in STORAGES:
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {self.storage!r}")
        if self.monitor_every < 1:
            raise ValueError(f"monitor_every must be >= 1, got {self.monitor_every}")

    @abstractmethod
    def make(self, chain: Chain, loss: OutputLoss) -> Method:
        """The method that trains this chain."""

    # ------------------------------------------------------------------------------------------------------- setting up
    def take_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Know the loss, or refuse it."""
        self._loss = output_loss(loss)

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        """Read the chain of the model's ``network``, or of the module itself."""
        chain = Chain(getattr(network, "network", network))
        _warn_of_untrained(chain)
        self.method = self.make(chain, self._loss)
        self._store: SampleStore | None = None

    def optimizer(self) -> torch.optim.Optimizer:
        """One step is one iteration."""
        return LiftedOptimizer(self.method)

    def refuse(self, facts: TrainerFacts) -> list[str]:
        """What has no meaning here, or would break it."""
        reasons = []
        if facts.gradient_clip_val:
            reasons.append("gradient_clip_val: there are no gradients; ridge and the step sizes hold the weights back")
        if facts.accumulate_grad_batches != 1 or "GradientAccumulationScheduler" in facts.callbacks:
            reasons.append(
                "accumulate_grad_batches: sums over the batches of a pass are taken anyway; set it to 1, and let the "
                "loader give smaller batches"
            )
        if facts.precision not in _PRECISIONS:
            reasons.append(f"precision {facts.precision!r}, expected one of {', '.join(_PRECISIONS)}")
        if facts.strategy not in _STRATEGIES:
            reasons.append(f"strategy {facts.strategy}: weights must lie whole on each process; use DDP")
        if "StochasticWeightAveraging" in facts.callbacks:
            reasons.append("StochasticWeightAveraging: there is no learning rate to anneal")
        if facts.regularizers:
            named = ", ".join(facts.regularizers)
            reasons.append(f"regularizers {named}: their terms have derivatives only; use the loop's ridge")
        return reasons

    @property
    def steps_once_a_pass(self) -> bool:  # type: ignore[override]
        """Whether an iteration needs all samples."""
        return self.method.full_batch

    @property
    def owns_samples(self) -> bool:
        """Whether auxiliary variables live on between iterations; asked before the method is made."""
        return True

    @property
    def aux_policy(self) -> Literal["gather", "shards", "none"]:
        """As chosen, where there is anything to save."""
        return "none" if getattr(self, "_store", None) is None else self.checkpoints

    def refuse_data(self, data: TrainingData) -> list[str]:
        """Samples without an owner, and samples that change."""
        before, self.method.size = self.method.size, data.size
        self._pieces = data.batches_per_pass
        if not self.method.persistent:
            return [] if data.size else ["the loader does not tell the number of samples, which ridge needs"]
        if not data.owned:
            return [
                "auxiliary variables belong to samples, so batches must say which samples they hold, and each sample "
                "must stay with its process: trainer.fit(model, morphlightning.data.indexed(loader)), or a data module "
                "of ours"
            ]
        if data.variation:
            return [
                f"{data.variation}, but auxiliary variables belong to inputs that stay as they are: fix the noise "
                "(fixed_noise=True), leave random augmentation out, or train without memory (optimizer "
                "{'name': 'lifted', 'mode': 'memoryless'})"
            ]
        if before not in (0, data.size):
            return [
                f"the checkpoint belongs to {before} samples, here are {data.size}: resume with the same data, or "
                "begin anew from its weights (load_from_checkpoint, and fit without ckpt_path)"
            ]
        self._store = SampleStore(data.size, data.rank, data.world_size, self.storage)
        self._begins = True
        return []

    # ----------------------------------------------------------------------------------------------------- an iteration
    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """An iteration, or its share of one batch."""
        method, x, y = self.method, batch.input, batch.target
        method.reduce = context.all_reduce
        method.monitored = method.iteration % self.monitor_every == 0
        samples = self._take(batch)
        if method.full_batch and self._pieces > 1:
            method.piece(samples, x, y)
            self._put(batch, samples)
            if not context.ends_pass:
                return {}
            iterate: Callable[[], None] = method.update
        else:
            iterate = lambda: method.iterate(samples, x, y)  # noqa: E731

        def closure() -> Tensor:
            iterate()
            self._put(batch, samples)
            return method.figures.get("loss", torch.zeros(()))

        monitored = method.monitored
        context.step(closure)
        return dict(method.figures) if monitored else {}

    def _take(self, batch: Batch) -> Samples:
        """The auxiliary variables of a batch; new ones where there are none."""
        if self._store is None:
            return {}
        assert batch.indices is not None
        if self._begins:
            self._begins = False
            known = self.method.reduce(self._store.known.sum().double().to(batch.input.device))
            if self.method.begins_anew(int(known)):
                self._store.known[:] = False
        kept = self._store.take(batch.indices, batch.input.device)
        if kept is None:
            return self.method.start(batch.input, batch.target)
        samples, known = kept
        if known.all():
            return samples
        fresh, new = self.method.start(batch.input, batch.target), ~known.to(batch.input.device)
        for name, values in fresh.items():
            samples[name][new] = values[new]
        return samples

    def _put(self, batch: Batch, samples: Samples) -> None:
        if self._store is not None:
            assert batch.indices is not None
            self._store.put(batch.indices, samples)

    # ------------------------------------------------------------------------------------------------------ checkpoints
    def aux_state(self) -> dict[str, Tensor]:
        """Auxiliary variables by global sample index, and the sums of an unfinished iteration."""
        if self._store is None:
            return {}
        sums = {f"{_SUM}{name}": value for name, value in self.method.partial_sums().items()}
        return {name: value.detach().cpu() for name, value in {**self._store.state(), **sums}.items()}

    def load_aux_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with them."""
        assert self._store is not None
        rows = {name: value for name, value in state.items() if not name.startswith(_SUM)}
        self._store.load(rows, self.method.device)
        self.method.load_partial_sums(
            {name.removeprefix(_SUM): value for name, value in state.items() if name.startswith(_SUM)}
        )

    def regroup_aux_states(
        self, states: Sequence[Mapping[str, Tensor]], rank: int, world_size: int
    ) -> dict[str, Tensor]:
        """The samples that this process owns; process 0 takes the sums."""
        rows = [{name: value for name, value in state.items() if not name.startswith(_SUM)} for state in states]
        mine = select(rows, rank, world_size)
        for name in (name for name in states[0] if name.startswith(_SUM) and rank == 0):
            mine[name] = torch.stack([state[name] for state in states]).sum(0)
        return mine


def _warn_of_untrained(chain: Chain) -> None:
    """Say which parameters stay as they are: those of activations."""
    solved = {id(parameter) for parameter in chain.parameters()}
    stay = [name for name, p in chain.network.named_parameters() if p.requires_grad and id(p) not in solved]
    if stay:
        rank_zero_warn(
            f"lifted training solves for the weights of affine layers alone; {', '.join(stay)} stay as they are. "
            "Freeze them (requires_grad_(False)), or train them with an optimizer such as 'adam' afterwards",
            category=TrainingWarning,
        )
