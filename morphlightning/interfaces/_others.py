"""Activations, regularizers, diagnostics, and what modules may be able to do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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


def _alone(value: Tensor) -> Tensor:
    return value.unsqueeze(0)


class RegularizerContext(NamedTuple):
    """What a regularizer may look at besides the module.

    Attributes:
        input: What the module was given.
        output: What it gave.
        step: Optimizer steps taken so far.
        dataset_size: Number of training samples; 0 where it is not known.
        activations: Outputs of the submodules that ``watches`` names, of the last call of each; since 1.5.
        gather: Values of all processes without their gradients, stacked along a new first axis; since 1.5. Every
            process must call it equally often.
    """

    input: Tensor
    output: Tensor
    step: int
    dataset_size: int
    activations: Mapping[str, Tensor] = MappingProxyType({})
    gather: Callable[[Tensor], Tensor] = _alone


class Regularizer(Component):
    """A scalar term added to the data loss; logged as ``regularizer/<name>``."""

    def bind(self, module: nn.Module) -> None:
        """Look at the module once, before training; raise ConfigError where the term means nothing for it."""

    def watches(self, module: nn.Module) -> Sequence[str]:
        """Names of submodules whose outputs ``term`` wants to see in ``context.activations``; since 1.5."""
        return ()

    @abstractmethod
    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted term, a scalar tensor that can be differentiated."""

    def prox_(self, module: nn.Module, steps: Mapping[nn.Parameter, float]) -> None:
        """Move parameters by the proximal map of a part that ``term`` leaves out, in place; since 1.4.

        Called after each optimizer step, before constraints are restored, with the learning rate of each parameter.
        """


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


Norm = Literal["l2", "linf", "any"]
"""Of all numbers of a sample: Euclidean, largest modulus, or either, for maps with the same constant in both."""


class LipschitzSpec(NamedTuple):
    """How far a map can move its outputs apart: |f(x) - f(y)|_out <= constant |x - y|_in; since 1.4.

    Attributes:
        constant: An upper bound that holds for all inputs, not an estimate.
        norm_in: The norm of inputs, over all numbers of a sample; "any" for maps of each number by itself.
        norm_out: The norm of outputs; "any" with that of the inputs.
        exact: Whether no smaller constant would do.
        why: The reason, in words, for reports.
    """

    constant: float
    norm_in: Norm = "l2"
    norm_out: Norm = "l2"
    exact: bool = False
    why: str = ""


@runtime_checkable
class LipschitzDeclared(Protocol):
    """A module that knows a Lipschitz constant of itself, with the parameters as they are now; since 1.4."""

    def lipschitz_spec(self) -> LipschitzSpec:
        """The constant and the norms it is for."""
        ...


class Equivariances(NamedTuple):
    """With which changes of its inputs a map commutes, for all inputs and the parameters as they are now; since 1.5.

    The changes are those of ``morphlightning.guarantees.stability.Change``: ``shift`` by pixels, ``contrast``,
    ``brightness``, ``gain``, ``sup`` and ``inf`` of two inputs.

    Attributes:
        bitwise: Those with which the computation itself commutes, bit for bit.
        rounded: Those with which it commutes in exact arithmetic.
        reach: For ``shift``: how far outputs see beyond the border of the input, in pixels along each axis or along
            all; outputs that do not see beyond it commute. None where all commute with circular shifts.
        stride: For ``shift``: by how many pixels the input moves where the output moves by one.
    """

    bitwise: frozenset[str] = frozenset()
    rounded: frozenset[str] = frozenset()
    reach: int | tuple[int, ...] | None = None
    stride: int | tuple[int, ...] = 1


@runtime_checkable
class EquivarianceDeclared(Protocol):
    """A module that knows with which changes of its inputs it commutes; since 1.5."""

    def equivariances(self) -> Equivariances:
        """What it claims; a claim that turns out false fails the run that measures it."""
        ...


@runtime_checkable
class Hardenable(Protocol):
    """A layer that relaxes maxima at an inverse temperature, and knows the layer that it relaxes; since 1.5.

    Attributes:
        beta: The inverse temperature, a buffer without axes.
    """

    beta: Tensor

    def set_beta(self, beta: float) -> None:
        """Change the inverse temperature."""
        ...

    def harden(self) -> nn.Module:
        """The layer at infinite beta, with a copy of the parameters."""
        ...


@runtime_checkable
class Posterior(Protocol):
    """A module whose weights are random, and that knows what they tell beyond a prior; since 1.5."""

    def kl(self) -> Tensor:
        """KL of the law of the weights to the prior, in nats: the sum over all of them, never their mean.

        A scalar that can be differentiated.
        """
        ...


@runtime_checkable
class Spline(Protocol):
    """A module that applies learnable linear splines; since 1.4."""

    def table(self) -> Any:
        """The splines as they are applied, as a ``morphlightning.splines.SplineTable``."""
        ...

    def tv2(self) -> Tensor:
        """The second-order total variation of each spline, (splines,); can be differentiated."""
        ...
