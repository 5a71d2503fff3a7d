r"""Proximal activations: monotone, 1-Lipschitz functions, each the proximal map of a convex function.

For a convex :math:`\Psi` let :math:`h = \tfrac12|\cdot|^2 + \Psi` and :math:`h^*` its conjugate. Then

.. math:: \sigma = \mathrm{prox}_\Psi = \nabla h^*, \qquad B(x, z) = h(x) + h^*(z) - \langle x, z\rangle,

and the Bregman loss B has :math:`\nabla_z B = \sigma(z) - x`, :math:`B \ge \tfrac12|x - \sigma(z)|^2`, and is 0 at
:math:`x = \sigma(z)` alone. Nothing here differentiates an activation.

Source: X. Wang and M. Benning, Lifted Bregman training of neural networks, JMLR 24 (232), 2023; the proximal maps of
:math:`t\Psi` are derived here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError


class ProximalActivation(ABC):
    """An activation with its convex functions. Tensors have any shape, with samples along the first axis.

    Activations have the dtype of their argument; h, h_star and loss are computed and returned in float32 at least.
    Apart from :class:`Softmax`, everything is elementwise.

    Attributes:
        closed_form: The proximal map needs no iteration.
        mirror_only: There is no proximal map in closed form or in one variable: only the mirror step works.
    """

    closed_form: ClassVar[bool] = True
    mirror_only: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """sigma(z)."""

    @abstractmethod
    def prox(self, v: Tensor, t: float) -> Tensor:
        r"""The minimizer of :math:`\tfrac12(u - v)^2 + t\Psi(u)`, for t > 0; sigma(v) where t is 1."""

    @abstractmethod
    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12 x^2 + \Psi(x)`, up to a constant; +inf outside its domain, the closed range of sigma."""

    @abstractmethod
    def h_star(self, z: Tensor) -> Tensor:
        """The conjugate of h: an antiderivative of sigma."""

    def loss(self, x: Tensor, z: Tensor) -> Tensor:
        """B(x, z), summed over all axes but the first: shape (samples,)."""
        return _per_sample(self._divergence(x, z))

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """The gradient of the loss with respect to z: sigma(z) - x."""
        return self(z) - x

    def _divergence(self, x: Tensor, z: Tensor) -> Tensor:
        return self.h(x) + self.h_star(z) - widen(x) * widen(z)


# ---------------------------------------------------------------------------------------------- broken lines
class Clamp(ProximalActivation):
    """min(max(z, low), high); Psi is the indicator function of [low, high].

    Raises:
        ConfigError: low is not below high.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ConfigError(f"Clamp: low must be below high, got low={low} and high={high}")
        self.low, self.high = low, high

    def __call__(self, z: Tensor) -> Tensor:
        """Clamp z."""
        return z.clamp(self.low, self.high)

    def prox(self, v: Tensor, t: float) -> Tensor:
        """The projection onto [low, high], whatever t."""
        return self(v)

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12x^2` on [low, high]."""
        return on_domain(x, self.low, self.high, lambda x: x * x / 2)

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`sz - \tfrac12s^2` with s = sigma(z)."""
        z = widen(z)
        s = self(z)
        return s * (z - s / 2)

    def _divergence(self, x: Tensor, z: Tensor) -> Tensor:
        z = widen(z)
        s = self(z)  # both terms are >= 0, so that nothing cancels
        return on_domain(x, self.low, self.high, lambda x: (x - s) ** 2 / 2 + (s - z) * (x - s))


class Identity(Clamp):
    """z; Psi = 0."""

    def __init__(self) -> None:
        super().__init__(-math.inf, math.inf)


class ReLU(Clamp):
    """max(z, 0); Psi is the indicator function of x >= 0."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)


class LeakyReLU(ProximalActivation):
    r"""z for z >= 0, slope z below; :math:`\Psi = \tfrac12(1/\mathrm{slope} - 1)\min(x, 0)^2`.

    Raises:
        ConfigError: slope is not in (0, 1]; with slope 0 it is :class:`ReLU`.
    """

    def __init__(self, slope: float = 0.01) -> None:
        if not 0 < slope <= 1:
            raise ConfigError(f"LeakyReLU: slope must lie in (0, 1], got {slope}; slope 0 is ReLU()")
        self.slope = slope

    def __call__(self, z: Tensor) -> Tensor:
        """The larger of z and slope z."""
        return F.leaky_relu(z, self.slope)

    def prox(self, v: Tensor, t: float) -> Tensor:
        r""":math:`v` for v >= 0, :math:`v/(1 + t(1/\mathrm{slope} - 1))` below."""
        check_weight(t)
        return F.leaky_relu(v, 1 / (1 + t * (1 / self.slope - 1)))

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12x^2`, divided by slope below 0."""
        x = widen(x)
        return x * F.leaky_relu(x, 1 / self.slope) / 2

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\tfrac12z^2`, times slope below 0."""
        z = widen(z)
        return z * self(z) / 2


class SoftShrink(ProximalActivation):
    r"""sign(z) max(\|z\| - threshold, 0); :math:`\Psi = \mathrm{threshold}\,|x|`.

    Args:
        threshold: >= 0: a number, or a tensor (channels,) with one for each channel; copied.
        channel_dim: The axis of the channels.

    Raises:
        ConfigError: A threshold is negative or not finite.
        ShapeError: threshold is not of shape (channels,), or an argument has another number of channels.
    """

    def __init__(self, threshold: float | Tensor = 0.5, channel_dim: int = 1) -> None:
        given = torch.as_tensor(threshold, dtype=torch.float64).detach()
        if given.ndim > 1:
            raise ShapeError(f"SoftShrink: threshold has shape {tuple(given.shape)}, expected a number or (channels,)")
        if not bool(((given >= 0) & given.isfinite()).all()):
            raise ConfigError(f"SoftShrink: thresholds must be finite and >= 0, got {threshold}")
        self.threshold = given.clone() if given.ndim else float(given)
        self.channel_dim = channel_dim

    def __call__(self, z: Tensor) -> Tensor:
        """Shrink z by the threshold."""
        return self._shrink(z, 1.0)

    def prox(self, v: Tensor, t: float) -> Tensor:
        """Shrink v by t times the threshold."""
        check_weight(t)
        return self._shrink(v, t)

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12x^2 + \mathrm{threshold}\,|x|`."""
        x = widen(x)
        return x * x / 2 + self._threshold(x) * x.abs()

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\tfrac12\max(|z| - \mathrm{threshold}, 0)^2`."""
        return self(widen(z)) ** 2 / 2

    def _shrink(self, z: Tensor, t: float) -> Tensor:
        wide = widen(z)
        reach = self._threshold(wide) * t
        return (wide - torch.clamp(wide, -reach, reach)).to(z.dtype)

    def _threshold(self, x: Tensor) -> Tensor:
        if not isinstance(self.threshold, Tensor):
            return x.new_full((), self.threshold)
        return along(self.threshold, x, self.channel_dim)


# ------------------------------------------------------------------------------------------------- of vectors
class Softmax(ProximalActivation):
    """Softmax along an axis, a proximal map of vectors; h and h_star reduce that axis.

    Raises:
        ConfigError: dim is 0, the axis of the samples.
    """

    closed_form = False
    mirror_only = True

    def __init__(self, dim: int = -1) -> None:
        if dim == 0:
            raise ConfigError("Softmax: dim must be an axis of a sample, got 0, the axis of the samples")
        self.dim = dim

    def __call__(self, z: Tensor) -> Tensor:
        """The softmax along the axis."""
        return torch.softmax(z, self.dim)

    def prox(self, v: Tensor, t: float) -> Tensor:
        """Raise NotSupportedError."""
        raise NotSupportedError(
            "Softmax: its proximal map has no closed form and does not split into single variables; "
            "update what follows a softmax by the mirror step"
        )

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\sum x\log x` on the simplex; without the axis."""
        wide = widen(x)
        off = (wide.sum(self.dim) - 1).abs() > math.sqrt(torch.finfo(x.dtype).eps)
        outside = off | (wide < 0).any(self.dim)
        return torch.xlogy(wide, wide).sum(self.dim).masked_fill(outside, math.inf)

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\log\sum e^z`; without the axis."""
        return torch.logsumexp(widen(z), self.dim)

    def _divergence(self, x: Tensor, z: Tensor) -> Tensor:
        if self.dim % z.ndim == 0:
            raise ShapeError(f"Softmax: axis {self.dim} of {tuple(z.shape)} is that of the samples, not of a sample")
        return self.h(x) + self.h_star(z) - (widen(x) * widen(z)).sum(self.dim)


# ---------------------------------------------------------------------------------------------------- helpers
def widen(x: Tensor) -> Tensor:
    """X in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_weight(t: float) -> None:
    """Raise ConfigError unless t > 0."""
    if not t > 0:
        raise ConfigError(f"prox: the weight t must be positive, got {t}")


def along(channels: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """One value for each channel, in x's dtype and shaped to broadcast with x; ShapeError where they do not fit."""
    if not -x.ndim <= channel_dim < x.ndim or x.shape[channel_dim] != len(channels):
        raise ShapeError(f"axis {channel_dim} of {tuple(x.shape)} must have {len(channels)} channels")
    return channels.to(x).view(-1, *(1,) * (x.ndim - 1 - channel_dim % x.ndim))


def on_domain(
    x: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    value: Callable[[Tensor], Tensor],
    size: float = 0.0,
) -> Tensor:
    """value(x) on [low, high], +inf elsewhere.

    A value of sigma may miss its bound by the rounding of numbers as large as the bound, or as ``size``: it is taken
    to the bound.
    """
    wide = widen(x)
    inside = torch.clamp(wide, low, high)  # type: ignore[arg-type]  # two numbers or two tensors
    slack = torch.finfo(x.dtype).eps * (inside.abs() + size)
    return torch.where((wide - inside).abs() > slack, math.inf, value(inside))


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if values.ndim > 1 else values
