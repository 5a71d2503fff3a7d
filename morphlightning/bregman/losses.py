"""Losses of a network's output z, summed over everything but the batch: value, gradient in z, proximal map.

Sums, not means: the lifted objective weighs the loss of a sample against the Bregman losses of its layers, which are
sums over units, so that a mean over 784 pixels would put the balance off by 784.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.bregman.activations import ProximalActivation
from morphlightning.bregman.proximal import proximal
from morphlightning.errors import ConfigError, DataError, ShapeError


class OutputLoss(ABC):
    """A loss l(z, y) of the output, convex in z, whose gradient in z is Lipschitz.

    Attributes:
        lipschitz: Lipschitz constant of the gradient in z.
        is_quadratic: Whether it is lipschitz/2 ||z - y||^2: its proximal map has a closed form, its target is y.
    """

    lipschitz: float = 1.0
    is_quadratic: ClassVar[bool] = False

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the batch of the samples' losses, as a training step of torch's needs it."""
        return self.value(output, self.targets(target, output)).mean()

    @abstractmethod
    def targets(self, target: Tensor, output: Tensor) -> Tensor:
        """The batch's target in the shape and dtype of the output.

        Raises:
            ShapeError: It does not fit.
        """

    @abstractmethod
    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """l(z, y) of each sample, (batch,)."""

    @abstractmethod
    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """The gradient in z, its shape."""

    def target(self, u: Tensor, y: Tensor) -> Tensor:
        """What least squares aims at where it minimizes a majorizer of the loss: u - gradient / lipschitz."""
        return u - self.gradient(u, y) / self.lipschitz

    def prox_(self, v: Tensor, y: Tensor, rho: float) -> Tensor:
        """The minimizer of l(z, y) + rho/2 ||z - v||^2 over z, in place of v."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form of its proximal map")


class SquaredError(OutputLoss):
    """weight/2 ||z - y||^2.

    Args:
        weight: Factor, > 0; 2 is the sum of squares.
    """

    is_quadratic = True

    def __init__(self, weight: float = 1.0) -> None:
        if not weight > 0:
            raise ConfigError(f"SquaredError: weight must be > 0, got {weight}")
        self.lipschitz = weight

    def targets(self, target: Tensor, output: Tensor) -> Tensor:
        """The target, which has as many values as the output."""
        if target.shape == output.shape:
            return target.to(output.dtype)
        if target.shape[:1] != output.shape[:1] or target.numel() != output.numel():
            raise ShapeError(
                f"SquaredError: the output has shape {tuple(output.shape)}, the target {tuple(target.shape)}; expected "
                "as many values for each sample"
            )
        return target.to(output.dtype).reshape(output.shape)

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """As the base."""
        return 0.5 * self.lipschitz * (z - y).flatten(1).square().sum(1)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """As the base, weight (z - y)."""
        return z - y if self.lipschitz == 1 else self.lipschitz * (z - y)

    def prox_(self, v: Tensor, y: Tensor, rho: float) -> Tensor:
        """(weight y + rho v) / (weight + rho)."""
        return v.lerp_(y, self.lipschitz / (self.lipschitz + rho))


class CrossEntropy(OutputLoss):
    """log sum exp z - <y, z> for class probabilities y: the Bregman loss of softmax, up to the entropy of y.

    Targets are class indices (batch,) or probabilities (batch, classes); outputs (batch, classes). The gradient is
    1/2-Lipschitz: diag(p) - p p^T has no eigenvalue above 1/2 (by Gershgorin, 2 p_i (1 - p_i) <= 1/2).
    """

    lipschitz = 0.5

    def targets(self, target: Tensor, output: Tensor) -> Tensor:
        """Probabilities of the shape of the output."""
        if output.ndim != 2:
            raise ShapeError(f"CrossEntropy: outputs must be (batch, classes), got {tuple(output.shape)}")
        if target.shape == output.shape:
            return target.to(output.dtype)
        if target.ndim != 1 or target.is_floating_point():
            raise ShapeError(
                f"CrossEntropy: the target has shape {tuple(target.shape)} and dtype {target.dtype}; expected class "
                f"indices (batch,) or probabilities {tuple(output.shape)}"
            )
        if len(target) != len(output):
            raise ShapeError(f"CrossEntropy: {len(target)} targets for {len(output)} outputs")
        if ((target < 0) | (target >= output.shape[1])).any():
            raise ShapeError(
                f"CrossEntropy: expected class indices from 0 to {output.shape[1] - 1}, as many as there are outputs, "
                f"got {int(target.min())} to {int(target.max())}"
            )
        return F.one_hot(target.long(), output.shape[1]).to(output.dtype)

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """As the base."""
        return z.logsumexp(-1) - (y * z).sum(-1)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """softmax(z) - y."""
        return z.softmax(-1) - y


class BregmanLoss(OutputLoss):
    """B(y, z) = h(y) + h*(z) - <y, z> of a proximal activation, for networks whose last activation is left out.

    Its gradient is sigma(z) - y: the last activation is not differentiated either. Sigmoid gives binary cross-entropy.

    Args:
        activation: The activation whose output is compared with the target.

    Source: Wang and Benning, JMLR 24(232), 2023.
    """

    def __init__(self, activation: nn.Module | ProximalActivation) -> None:
        self.activation = proximal(activation)

    def targets(self, target: Tensor, output: Tensor) -> Tensor:
        """The target, which has as many values as the output and lies in the closure of the activation's range.

        Raises:
            DataError: It does not: its loss would be infinite.
        """
        y = SquaredError().targets(target, output)
        if not self.activation.h(y).isfinite().all():
            raise DataError(
                f"BregmanLoss: targets from {float(y.min()):.6g} to {float(y.max()):.6g} are not all in the range of "
                f"{type(self.activation).__name__}; scale them into it"
            )
        return y

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """As the base."""
        return self.activation.loss(y, z)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """sigma(z) - y."""
        return self.activation.gradient(y, z)


def _is_plain(loss: nn.CrossEntropyLoss) -> bool:
    """Whether all classes and samples count alike; -100 is no class."""
    return loss.weight is None and not loss.label_smoothing and loss.ignore_index == -100


LOSSES: dict[str, type[OutputLoss]] = {"squared_error": SquaredError, "cross_entropy": CrossEntropy}
_BY_MEANS = "means over a sample's outputs put the balance of loss and layers off by their number"


def output_loss(loss: Any) -> OutputLoss:
    """The loss of a name, of an object, or of one of torch's losses that are sums over a sample's outputs.

    Raises:
        ConfigError: A mean over a sample's outputs, or a loss that is not known.
    """
    if isinstance(loss, OutputLoss):
        return loss
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]()
    if isinstance(loss, nn.CrossEntropyLoss) and _is_plain(loss):
        return CrossEntropy()
    if loss is F.cross_entropy:
        return CrossEntropy()
    if isinstance(loss, nn.MSELoss) and loss.reduction == "sum":
        return SquaredError(2.0)
    means = isinstance(loss, nn.MSELoss) or loss in (F.mse_loss, "mse_loss")
    named = loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)
    hint = f"{_BY_MEANS}; 'squared_error' is 1/2 the sum of squares" if means else "an OutputLoss of your own will do"
    raise ConfigError(
        f"the loss {named!r} cannot be lifted: {hint}. Expected {', '.join(map(repr, LOSSES))}, BregmanLoss(activation)"
        ", nn.CrossEntropyLoss() or nn.MSELoss(reduction='sum')"
    )
