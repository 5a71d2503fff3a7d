"""What a rule or a heuristic sees of an operator's backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor


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
