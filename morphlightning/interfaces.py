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


class ActiveGraph(Protocol):
    """Which candidates are active in which rows: a bipartite graph of all rows and input cells of one call.

    The derivative of a maximum along h is the maximum of h over the active candidates, so it is a flat dilation on this
    graph (docs/bouligand.md, "The derivative").
    """

    @property
    def cells(self) -> int:
        """Number of input values of one sample."""
        ...

    @property
    def size(self) -> Tensor:
        """Number of active candidates of each row (samples, units), int32; 0 where there is none."""
        ...

    @property
    def tied(self) -> bool:
        """Whether some row has more than one."""
        ...

    def to_cells(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the cells of all its candidates: sums (samples, cells)."""
        ...

    def to_taps(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the weights of all its candidates: sums (taps,)."""
        ...

    def dilate(self, h: Tensor) -> Tensor:
        """Largest h (samples, cells) among each row's candidates (samples, units); 0 where there is none.

        A constant border does not move: its h is 0.
        """
        ...

    def erode(self, u: Tensor) -> Tensor:
        """Least u (samples, units) among the rows in which a cell is active (samples, cells); inf where in none."""
        ...

    def select(self, values: Tensor) -> Tensor:
        """The candidate of each row with the least value (samples, cells), the first of equal ones; -1 where none.

        Taps inside the row's candidates, int32 (samples, units). A constant border is chosen where nothing else is.
        """
        ...

    def deliver(self, gy: Tensor, taps: Tensor | None) -> Tensor:
        """Send each row's message (samples, units) to one candidate, its winner for None: sums (samples, cells)."""
        ...

    def steepest(self, gy: Tensor, default: Tensor) -> Tensor:
        """Of eight candidate messages the one along whose negative <gy, y> falls fastest, sample by sample.

        See :func:`morphlightning.ops.messages.steepest`; samples without a tie keep ``default`` (samples, cells).
        """
        ...


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
        """Winning tap of each row inside the row's candidates (samples, units), int32; -1 where there is none."""
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

    def forward(self, x: Tensor) -> Tensor:
        """The max-plus operator of another input (samples, cells): (samples, units)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint erosion of y (samples, units): the greatest x (samples, cells) with forward(x) <= y."""
        ...

    def scatter(self, gy: Tensor, *, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message ``gy`` (samples, units) to its winner: gradients (samples, cells) and (taps,).

        What is not wanted is empty.
        """
        ...

    def touches(self, gy: Tensor) -> Tensor:
        """Count, for each weight, the rows with a message different from zero that selected it, shape (taps,)."""
        ...

    def active(self, eps: float) -> ActiveGraph:
        """The graph of candidates within eps of their maximum."""
        ...

    def expected(self, gy: Tensor, beta: float, *, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Share messages (samples, units) out by softmax(beta * scores): the gradient of log-sum-exp."""
        ...

    def projection(self, u: Tensor, tau: float, *, count: bool) -> tuple[Tensor, Tensor]:
        """Pseudo-gradients (w - w') / tau of the metric projections w' of each row on {maximum = y - tau u}.

        Shape (taps,), summed over rows, and how many of them moved each weight (empty without ``count``).
        """
        ...

    def chunks(self, rows: Tensor, eps: float) -> Iterator[ActiveChunk]:
        """Active sets of the rows marked in ``rows`` (samples, units), whole samples at a time, in sample order."""
        ...


Pulled = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients for x (samples, cells) and w (taps,), and touch counts (taps,); None for what was not asked for."""


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
        self, view: SiteView, gy: Tensor, *, want_x: bool = True, want_w: bool = True, count: bool = False
    ) -> Pulled:
        """Pull ``gy`` (samples, units) back to x, to w, and to the number of rows that touched each weight.

        Rows without a tie go through the winner alone; only the others are recomputed, a chunk at a time. Override it
        where ``view`` can do the same in fewer passes.
        """
        if self.support == "first":
            return self.to_winners(view, gy, want_x, want_w, count)
        tied = view.gap <= self.eps
        if self.scope == "sample":
            tied = tied.any(1, keepdim=True).expand_as(tied)
        rows = tied & (gy != 0)
        gx, gw, touched = self.to_winners(view, gy.masked_fill(rows, 0), want_x, want_w, count)
        for chunk in view.chunks(rows, self.eps):
            to_cells, to_taps = self.route(chunk, gy[chunk.sample, chunk.unit])
            if gx is not None:
                inside = chunk.cell >= 0
                index = chunk.sample[chunk.owner] * view.cells + chunk.cell
                gx.view(-1).index_add_(0, index[inside], to_cells[inside])
            if gw is not None:
                gw.index_add_(0, chunk.tap, to_taps)
            if touched is not None:
                touched.index_add_(0, chunk.tap, (to_taps != 0).to(touched.dtype))
        return gx, gw, touched

    @staticmethod
    def to_winners(view: SiteView, gy: Tensor, want_x: bool, want_w: bool, count: bool) -> Pulled:
        """The gradient of fixed winners: what every rule does without ties."""
        gx, gw = view.scatter(gy, want_x=want_x, want_w=want_w)
        return gx if want_x else None, gw if want_w else None, view.touches(gy) if count else None


# ------------------------------------------------------------------------------------------------- heuristics
ToWeights = tuple[Tensor, Tensor | None]
"""Gradient of the weights (taps,), and touch counts (taps,) where they are asked for."""


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

    def route(self, view: SiteView, gy: Tensor, count: bool, default: Callable[[Tensor], ToWeights]) -> ToWeights:
        """What messages ``gy`` (samples, units) send to the weights in place of ``default(gy)``, the rule's way."""
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
    groups: int = 1  # units i and inputs of the same group meet; out is a multiple of it


class SiteBatch(Protocol):
    r"""Training data as one weight meets them: rows of maxima :math:`\max_j x_{bj} + w_{ij}` (erosions by duality).

    A row b is one sample, or one sample at one position of the window. With C candidates of a group of U units the
    weight is (groups * U, C), flattened behind its first axis.
    """

    @property
    def x(self) -> Tensor:
        """What competes (rows, groups, C), in the order of a unit's weights; -inf outside an image; -x in erosions."""
        ...

    @property
    def y(self) -> Tensor:
        """What the units should give (rows, groups, U), -y in erosions; for initializers with data = "pairs" alone."""
        ...

    @property
    def draw(self) -> Tensor:
        """Random numbers (rows,), int64, >= 0: by seed and raw sample, the same in any batch and on any process."""
        ...

    def least(self) -> Tensor:
        """Minimum over rows of y - x, shape (groups, U, C); inf where x is -inf in all of them."""
        ...

    def greatest(self) -> Tensor:
        """Maximum over rows with x > -inf of y - x, shape (groups, U, C); -inf where there are none."""
        ...


class Initializer(Component):
    """Fills a layer's weights. Entries of -inf declare missing weights: they are masked and never trained.

    One that learns from data (since API 1.2) sets ``data``, fills a start that is safe without data, and defines
    ``begin``, ``update`` and ``finish``. Each process reads its own part of the data; the states are reduced over
    processes after each pass, entry by entry as ``reduce`` says, and the weights are those of process 0.

    Attributes:
        data: ``"none"``; ``"inputs"`` to see what the layer receives; ``"pairs"`` to see what it should give, too.
        reduce: For each entry of the state that ``update`` changes: ``"sum"``, ``"min"``, ``"max"``, or ``"gather"``
            (stacked along the first axis; entries of equal shape on all processes).
    """

    data: ClassVar[Literal["none", "inputs", "pairs"]] = "none"
    reduce: ClassVar[Mapping[str, Literal["sum", "min", "max", "gather"]]] = {}

    @property
    def passes(self) -> int:
        """How often it reads the data."""
        return 1

    @abstractmethod
    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Weights of shape ``spec.shape``, float32, from ``generator`` alone (the global one where it is None)."""

    def begin(self, spec: SiteSpec, w: Tensor, previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State before a pass, the neutral element of its reductions, on the device of ``w``.

        Args:
            spec: The layer.
            w: Its present weights, -inf where they are missing.
            previous: State after the pass before, reduced over processes; empty before the first.
        """
        raise TypeError(f"{type(self).__name__} declares data = {self.data!r} but does not define begin()")

    def update(self, state: dict[str, Tensor], batch: SiteBatch) -> None:
        """Take in a batch; the state after a pass must not depend on how rows are parted into batches, or ordered."""
        raise TypeError(f"{type(self).__name__} declares data = {self.data!r} but does not define update()")

    def finish(self, spec: SiteSpec, w: Tensor, state: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Weights of shape ``spec.shape`` from the state after the last pass; random numbers from ``generator``."""
        raise TypeError(f"{type(self).__name__} declares data = {self.data!r} but does not define finish()")


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
