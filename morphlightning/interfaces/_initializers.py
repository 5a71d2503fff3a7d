"""How weights start."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from morphlightning.interfaces._component import Component


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
