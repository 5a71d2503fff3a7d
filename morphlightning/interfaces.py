"""The plugin API: what a component of each kind must do.

A component is found by an entry point in the group ``morphlightning.<kind>`` and named in Python, in YAML or on the
command line. Its parameters are the fields of a frozen dataclass (derivatives, heuristics, initializers, regularizers,
optimizers) or the arguments of its constructor (activations, diagnostics). This module imports torch alone.

Versions: a component declares ``api_version``; the same major version and a minor version not above ours is accepted.
Minor versions add methods with defaults, so a component written for 1.0 goes on working with 1.x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

API_VERSION = "1.2"
KINDS = ("derivatives", "heuristics", "initializers", "optimizers", "activations", "regularizers", "diagnostics")

Spec = Any
"""How a component is named: a string, a mapping ``{"name": ..., **parameters}``, or the object itself."""


class Component(ABC):  # noqa: B024 - a common base, nothing of it is abstract
    """What all kinds share that are not torch or Lightning objects already.

    Attributes:
        api_version: The plugin API that the component was written for.
        syncs: What keeps the processes of a run equal. ``"gradients"``: the component acts through autograd before
            gradients are reduced. ``"statistics"``: its statistics are summed over all processes before it sees them.
            ``"parameters"``: what it writes is broadcast from process 0. A component never calls torch.distributed.
    """

    api_version: ClassVar[str] = API_VERSION
    syncs: ClassVar[Literal["gradients", "statistics", "parameters"]] = "gradients"


# ------------------------------------------------------------------------------------------------ derivatives
class ActiveChunk(NamedTuple):
    """The active sets of R rows of one operator call: N pairs (row, candidate), grouped by ``owner``.

    A row is one maximum: sample ``sample[r]`` and output ``unit[r]``. A candidate is active when its score lies within
    eps of the maximum. Missing weights (-inf) are never active.
    """

    sample: Tensor  # (R,) int64
    unit: Tensor  # (R,) int64, flat output index inside the sample
    owner: Tensor  # (N,) int64, ascending: the row of the pair
    cell: Tensor  # (N,) int64, flat input index inside the sample; -1 where the candidate is a constant border
    tap: Tensor  # (N,) int64, flat index into the weight
    slack: Tensor  # (N,) maximum minus score, >= 0
    winner: Tensor  # (N,) bool, the one candidate that the forward pass selected
    size: Tensor  # (R,) int64, number of active candidates


class SiteView(Protocol):
    """One call of one max-plus operator, as its backward sees it (erosions reach it through duality)."""

    w: Tensor  # (taps,)
    gap: Tensor  # (samples, units): distance to the runner-up, inf where no candidate is finite

    @property
    def x(self) -> Tensor:
        """Input (samples, cells), +inf replaced by the largest number; -x in a dual operator."""
        ...

    @property
    def arg(self) -> Tensor:
        """Winning tap of each row inside the row's candidates (samples, units), int64; -1 where there is none."""
        ...

    @property
    def samples(self) -> int:
        """Size of the batch, all leading axes together."""
        ...

    @property
    def cells(self) -> int:
        """Number of input values of one sample."""
        ...

    @property
    def units(self) -> int:
        """Number of output values of one sample."""
        ...

    def scatter(self, gy: Tensor) -> tuple[Tensor, Tensor]:
        """Send each message ``gy`` (samples, units) to its winner: gradients (samples, cells) and (taps,)."""
        ...

    def touches(self, gy: Tensor) -> Tensor:
        """Count, for each weight, the rows with a message different from zero that selected it, shape (taps,)."""
        ...

    def counts(self, eps: float) -> Tensor:
        """Number of active candidates of each row (samples, units), int32; 0 where there is none (since 1.1)."""
        ...

    def spread(self, to_cells: Tensor, to_taps: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Send each row's messages (samples, units) to all its active candidates (since 1.1).

        Gradients (samples, cells) and (taps,). The fast way for rules that treat all candidates of a row alike.
        """
        ...

    def chunks(self, rows: Tensor, eps: float) -> Iterator[ActiveChunk]:
        """Active sets of the rows marked in ``rows`` (samples, units), whole samples at a time, in sample order."""
        ...


RouteFilter = Callable[[ActiveChunk, Tensor, Tensor], Tensor]


class DerivativeRule(Component):
    """At a maximum with ties, who receives the message, and how much of it.

    Axioms, checked by ``morphlightning.testing``: positively homogeneous in the message; a lone candidate receives
    exactly the message (this licenses the fast path); nothing leaves the active set; the result does not depend on the
    order of the batch. A rule need not be linear.

    Attributes:
        support: ``"first"`` rules need the winner only, ``"active"`` rules the whole active set.
        scope: ``"row"`` rules look at one maximum at a time; ``"sample"`` rules need all rows of a sample with a tie.
        eps: Candidates whose score lies within eps of the maximum count as tied.
    """

    support: ClassVar[Literal["first", "active"]] = "active"
    scope: ClassVar[Literal["row", "sample"]] = "row"
    eps: float = 0.0

    @abstractmethod
    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Share out the messages ``u`` (R,): what each pair sends to its cell (N,) and to its tap (N,)."""

    def backward(
        self, view: SiteView, gy: Tensor, count: bool, route_filter: RouteFilter | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pull ``gy`` (samples, units) back: gradients for x (samples, cells), w (taps,) and touch counts (taps,).

        Rows without a tie go through the winner alone; only the others are recomputed. Override it only where most
        pairs are active and a fused product is cheaper.
        """
        if self.support == "first" and route_filter is None:
            gx, gw = view.scatter(gy)
            return gx, gw, view.touches(gy) if count else None
        tied = torch.ones_like(view.gap, dtype=torch.bool) if route_filter is not None else view.gap <= self.eps
        if self.scope == "sample":
            tied = tied.any(1, keepdim=True).expand_as(tied)
        rows = tied & (gy != 0)
        gx, gw = view.scatter(gy.masked_fill(rows, 0))
        touched = view.touches(gy.masked_fill(rows, 0)) if count else None
        for chunk in view.chunks(rows, self.eps):
            u = gy[chunk.sample, chunk.unit]
            to_cells, to_taps = self.route(chunk, u)
            if route_filter is not None:
                to_taps = route_filter(chunk, u, to_taps)
            inside = chunk.cell >= 0
            index = chunk.sample[chunk.owner] * view.cells + chunk.cell
            gx.view(-1).index_add_(0, index[inside], to_cells[inside])
            gw.index_add_(0, chunk.tap, to_taps)
            if touched is not None:
                touched.index_add_(0, chunk.tap, (to_taps != 0).to(touched.dtype))
        return gx, gw, touched


# ------------------------------------------------------------------------------------------------- heuristics
class Heuristic(Component):
    """How a message is passed on, and how a batch of parameter directions becomes one step.

    Attributes:
        stage: ``"message"`` acts inside backward and replaces the message to the previous layer; ``"route"`` acts
            inside backward and changes what reaches the weights; ``"update"`` acts on gradients after they were
            reduced over processes and before clipping and the optimizer's step.
        needs: Statistics that a layer must record for it, summed over micro-batches and processes: ``"count"`` (rows
            that touched each weight), ``"samples"`` (size of the batch), ``"gaps"`` (histogram of the gaps of all rows
            with a message, to be read by :func:`morphlightning.layers.gap_quantile`; since 1.2). And ``"lr"``, the
            optimizer's rate for the weight, which is missing where nobody named the optimizer (since 1.2).
        after: Names of update heuristics that must stand before this one in a composition.
        homogeneous: Whether t times the message gives t times the result. Where it does not (a finite step, which
            takes the message at its word), a model refuses to train with a scaled loss (precision 16-mixed) and
            where the Trainer accumulates other than ``accumulation`` batches, a field of the heuristic (1 where it
            has none): both scale messages. Since 1.2.
    """

    stage: ClassVar[Literal["message", "route", "update"]]
    needs: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()
    homogeneous: ClassVar[bool] = True

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """Message to the inputs (samples, cells) in place of the derivative rule's ``default``."""
        raise TypeError(f"{type(self).__name__} declares stage 'message' but does not define message()")

    def route(self, chunk: ActiveChunk, u: Tensor, default: Tensor) -> Tensor:
        """What each active pair sends to its weight (N,) in place of the derivative rule's ``default``."""
        raise TypeError(f"{type(self).__name__} declares stage 'route' but does not define route()")

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Gradient handed to the optimizer in place of ``grad``, of the weight's shape, as ``count`` is."""
        raise TypeError(f"{type(self).__name__} declares stage 'update' but does not define update()")


# ----------------------------------------------------------------------------------------------- initializers
class SiteSpec(NamedTuple):
    """What an initializer may know of a layer."""

    op: str  # "dilation", "erosion", "opening", ...
    shape: tuple[int, ...]  # of the weight: (out, in), or (out, channels of a group, *window)
    window: tuple[int, ...] = ()  # the last axes of shape that are a window; empty for dense layers


class Initializer(Component):
    """Fills a layer's weights. Entries of -inf declare missing weights: they are masked and never trained."""

    @abstractmethod
    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Weights of shape ``spec.shape``, float32, from ``generator`` alone (the global one where it is None)."""


# ------------------------------------------------------------------------------------------------- optimizers
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


class Group(NamedTuple):
    """Parameters that an optimizer treats alike.

    Roles: ``"morph"`` (max-plus weights: decay would make them win, not vanish), ``"linear"`` (weights of linear and
    convolution layers), ``"norm"``, ``"bias"``, ``"activation"``, ``"other"``. ``decay`` says whether weight decay
    makes sense for them. ``sites`` holds the statistics of max-plus weights (since 1.2).
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


class StepContext(Protocol):
    """What a loop may use during one iteration. Losses are means over the local batch."""

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
    """

    @abstractmethod
    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        """Take hold of the network; raise NotSupportedError with every layer that cannot be trained this way."""

    def refuse(self, facts: TrainerFacts) -> list[str]:
        """Reasons why this loop cannot run under these settings; all are raised together at setup."""
        return []

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Exactly one optimizer; its state is what must be equal on all processes."""

    @abstractmethod
    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """One iteration; returns what is logged. Calls ``context.step`` exactly once."""

    def aux_state(self) -> dict[str, Tensor]:
        """State that belongs to samples, to be saved with the checkpoint; called on every process."""
        return {}

    def load_aux_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``aux_state`` gave."""


# ----------------------------------------------------------------------------------------------- activations
class Activation(Protocol):
    """A factory of pointwise modules: any shape to the same shape, dtype kept, own parameters and buffers.

    ``channels=None`` asks for one function shared by all channels; else each channel along ``channel_dim`` has its own
    or they share one, as the component documents.
    """

    def __call__(self, channels: int | None = None, channel_dim: int = 1, **params: Any) -> nn.Module:
        """Build the module."""
        ...


# ----------------------------------------------------------------------------------------------- regularizers
class RegularizerContext(NamedTuple):
    """What a regularizer may look at besides the module."""

    input: Tensor
    output: Tensor
    step: int
    dataset_size: int


class Regularizer(Component):
    """A scalar term added to the data loss; logged as ``regularizer/<name>``."""

    def bind(self, module: nn.Module) -> None:
        """Look at the module once, before training; raise ConfigError where the term means nothing for it."""

    @abstractmethod
    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted term, a scalar tensor that can be differentiated."""


# ------------------------------------------------------------------------------------------------ diagnostics
@runtime_checkable
class Diagnostic(Protocol):
    """A Lightning callback that measures and logs under ``diagnostics/<name>/...`` and never changes training.

    Attributes:
        reads: Statistics that layers must record for it (as ``Heuristic.needs``); nobody reads them, nobody pays.
    """

    reads: frozenset[str]


# ----------------------------------------------------------------------------------------------- capabilities
@runtime_checkable
class Constrained(Protocol):
    """A module whose parameters live in a set: ``project_`` is called after each optimizer step."""

    def project_(self) -> None:
        """Project the parameters onto their set, in place."""
        ...
