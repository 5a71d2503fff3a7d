"""Activations, regularizers, diagnostics, and what modules may be able to do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from morphlightning.interfaces._component import Component


class Activation(Protocol):
    """A factory of pointwise modules: any shape to the same shape, dtype kept, own parameters and buffers.

    ``channels=None`` asks for one function shared by all channels; else each channel along ``channel_dim`` has its own
    or they share one, as the component documents.
    """

    def __call__(self, channels: int | None = None, channel_dim: int = 1, **params: Any) -> nn.Module:
        """Build the module."""
        ...


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


@runtime_checkable
class Diagnostic(Protocol):
    """A Lightning callback that measures and logs under ``diagnostics/<name>/...`` and never changes training.

    Attributes:
        reads: Statistics that layers must record for it (as ``Heuristic.needs``); nobody reads them, nobody pays.
    """

    reads: frozenset[str]


@runtime_checkable
class Constrained(Protocol):
    """A module whose parameters live in a set: ``project_`` is called after each optimizer step."""

    def project_(self) -> None:
        """Project the parameters onto their set, in place."""
        ...


@runtime_checkable
class Proximal(Protocol):
    """An activation that is the proximal map of a convex function, and says which; since 1.3."""

    def proximal(self) -> Any:
        """It as a ``morphlightning.bregman.ProximalActivation``, with the parameters as they are now."""
        ...
