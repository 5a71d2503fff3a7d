"""How parameters step: torch's way, or a loop of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from morphlightning.interfaces._backward import Heuristic
from morphlightning.interfaces._component import Component


class StepStatistics(Protocol):
    """What an optimizer may know of one max-plus weight; since 1.2."""

    @property
    def weight(self) -> nn.Parameter:
        """The weight."""
        ...

    @property
    def updates(self) -> tuple[Heuristic, ...]:
        """The update heuristics that its gradient has passed when the optimizer steps."""
        ...

    def read(self, statistics: frozenset[str]) -> None:
        """Record these statistics, from now on."""
        ...

    def of_step(self) -> Mapping[str, Tensor]:
        """Statistics of the step that is about to be taken, as heuristics see them.

        Raises ConfigError where ``apply_update_heuristics`` was not called since the last backward pass.
        """
        ...


ROLES = ("morph", "linear", "norm", "bias", "activation", "scale", "other")
"""What parameters can be to an optimizer, see :class:`Group`."""


class Group(NamedTuple):
    """Parameters that an optimizer treats alike.

    Roles: ``"morph"`` (max-plus weights: decay would make them win, not vanish), ``"linear"`` (weights of linear and
    convolution layers), ``"norm"``, ``"bias"``, ``"activation"``, ``"scale"`` (of activations; since 1.4), ``"other"``.
    ``decay`` says whether weight decay makes sense for them. ``sites`` holds the statistics of max-plus weights (since
    1.2).
    """

    role: str
    names: list[str]
    params: list[nn.Parameter]
    decay: bool
    sites: tuple[StepStatistics, ...] = ()


class TorchOptimizer(Component):
    """An ordinary torch optimizer with its schedule (automatic optimization)."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that max-plus layers must record for it: its groups' sites give them at each step; since 1.2."""
        return frozenset()

    @abstractmethod
    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """The optimizer over all groups."""

    def scheduler(self, optimizer: torch.optim.Optimizer, total_steps: int, total_epochs: int) -> dict[str, Any] | None:
        """Lightning's ``lr_scheduler`` configuration, or None for a constant rate."""
        return None


class Batch(NamedTuple):
    """One batch as a loop sees it; ``indices`` holds global sample indices where the loader gives them."""

    input: Tensor
    target: Tensor
    indices: Tensor | None = None


class TrainerFacts(NamedTuple):
    """What a loop may refuse: the trainer's settings that matter to manual optimization."""

    precision: str
    strategy: str
    world_size: int
    gradient_clip_val: float | None
    accumulate_grad_batches: int
    callbacks: tuple[str, ...] = ()  # names of the trainer's callbacks' types; since 1.3
    regularizers: tuple[str, ...] = ()  # names of the model's regularizers; since 1.3


class TrainingData(NamedTuple):
    """What a loop may refuse of the training data; since 1.3.

    Attributes:
        size: Samples over all processes, 0 where the loader does not tell.
        batches_per_pass: Batches of a process in one pass through the data, 0 where the loader does not tell.
        owned: Whether each batch holds indices, and sample i belongs to process i modulo their number for ever.
        variation: What differs when a sample is served again, in words, or None. Asked for where samples are owned.
        rank: Number of this process.
        world_size: Number of processes.
    """

    size: int
    batches_per_pass: int
    owned: bool
    variation: str | None
    rank: int
    world_size: int


class StepContext(Protocol):
    """What a loop may use during one iteration. Losses are means over the local batch."""

    @property
    def ends_pass(self) -> bool:
        """Whether this batch is the last of a pass through the training data; since 1.3."""
        ...

    def forward(self, input: Tensor) -> Tensor:
        """The network's output."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Data loss plus regularizers, a scalar."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward through Lightning: gradients are scaled, and reduced over processes."""
        ...

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over processes; every process must call it equally often."""
        ...

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One optimizer step around ``closure``, which clears gradients first; to be called exactly once."""
        ...


class Loop(Component):
    """A whole manual-optimization iteration (automatic optimization off).

    A loop is built anew for each module and bound to it. Its state lives in its one optimizer, which Lightning saves
    and restores; state that belongs to samples goes through ``aux_state``, keyed by global sample index.

    Attributes:
        steps_once_a_pass: An iteration is one pass through the data: ``step`` calls ``context.step`` in the pass's last
            batch alone; since 1.3.
    """

    steps_once_a_pass: bool = False

    @property
    def owns_samples(self) -> bool:
        """Whether batches must carry sample indices, and every process keep its samples for ever; since 1.3."""
        return False

    @property
    def aux_policy(self) -> Literal["gather", "shards", "none"]:
        """Where checkpoints put ``aux_state``; since 1.3.

        ``gather``: in the checkpoint, of all processes. ``shards``: in a file of each process, in a folder beside the
        logs that the checkpoint names. ``none``: nowhere; the loop begins anew.
        """
        return "gather"

    def take_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Look at the data loss, before ``bind``; raise ConfigError if it is one to be refused; since 1.3."""

    @abstractmethod
    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        """Take hold of the network; raise NotSupportedError with every layer that cannot be trained this way."""

    def refuse(self, facts: TrainerFacts) -> list[str]:
        """Reasons why this loop cannot run under these settings; all are raised together at setup."""
        return []

    def refuse_data(self, data: TrainingData) -> list[str]:
        """Reasons why this loop cannot train on these data, when training begins on every process; since 1.3."""
        return []

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Exactly one optimizer; its state is what must be equal on all processes."""

    @abstractmethod
    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """One iteration; returns what is logged. Calls ``context.step`` exactly once, but see ``steps_once_a_pass``."""

    def aux_state(self) -> dict[str, Tensor]:
        """State that belongs to samples, to be saved with the checkpoint; called on every process."""
        return {}

    def load_aux_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``aux_state`` gave."""

    def regroup_aux_states(self, states: Sequence[Mapping[str, Tensor]], rank: int, world_size: int) -> Any:
        """What a process loads of the states of another number of processes; None where that cannot be; since 1.3."""
        return None
