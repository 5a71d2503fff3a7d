"""Proximal activations that are smooth where they are not constant: their proximal maps by Newton's method.

Derived here.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.bregman.activations import ProximalActivation, check_weight, on_domain, widen
from morphlightning.errors import ConfigError

_NEWTON = 30
"""Steps; five to ten are usual, 14 the most for t >= 1e-3."""
_BISECTION = 200
"""Steps: more than there are bits in the widest bracket."""


class SmoothActivation(ProximalActivation):
    """A proximal activation whose proximal map is found by Newton's method: a subclass gives the slope of sigma."""

    closed_form = False

    @abstractmethod
    def slope(self, value: Tensor) -> Tensor:
        """The derivative of sigma where sigma takes this value."""

    @torch.no_grad()
    def prox(self, v: Tensor, t: float) -> Tensor:
        """sigma(p), where p solves the monotone equation t p + (1 - t) sigma(p) = v; not differentiable.

        By Newton's method from p = v; where that does not converge, by bisection.
        """
        check_weight(t)
        wide = widen(v)
        value, lost = self._newton(wide, t)
        if lost.any():
            value = torch.where(lost, self._bisection(wide, t), value)
        return value.to(v.dtype)

    def _newton(self, v: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """sigma(p), and where the residual stayed above the rounding of the equation's terms."""
        rounding = 4 * torch.finfo(v.dtype).eps
        p, value, least = v, self(v), rounding * v.abs()
        lost = torch.ones_like(v, dtype=torch.bool)
        for _ in range(_NEWTON):
            linear = t * p
            residual = torch.sub(v - linear, value, alpha=1 - t)
            lost = residual.abs() > torch.add(least, linear.abs(), alpha=rounding)
            if not lost.any():
                break
            p = torch.addcdiv(p, residual, t + (1 - t) * self.slope(value))
            value = self(p)
        return value, lost

    def _bisection(self, v: Tensor, t: float) -> Tensor:
        """sigma(p) from a bracket: the left side of the equation rises with a slope of at least min(t, 1)."""
        far = v + 2 * (1 - t) * (v - self(v)) / min(t, 1.0)  # twice as far as the root can be, for rounding
        low, high = torch.minimum(v, far), torch.maximum(v, far)
        for _ in range(_BISECTION):
            middle = low + (high - low) / 2
            if not ((low < middle) & (middle < high)).any():
                break
            above = t * middle + (1 - t) * self(middle) > v
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return self(low + (high - low) / 2)


class Tanh(SmoothActivation):
    """tanh z."""

    def __call__(self, z: Tensor) -> Tensor:
        r""":math:`\tanh z`."""
        return torch.tanh(z)

    def slope(self, value: Tensor) -> Tensor:
        r""":math:`1 - \sigma^2`."""
        return 1 - value * value

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12[(1+x)\log(1+x) + (1-x)\log(1-x)]` on [-1, 1]."""
        return on_domain(x, -1.0, 1.0, lambda x: (torch.xlogy(1 + x, 1 + x) + torch.xlogy(1 - x, 1 - x)) / 2)

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\log\cosh z`."""
        size = widen(z).abs()
        return size - F.logsigmoid(2 * size) - math.log(2)


class Sigmoid(SmoothActivation):
    """1/(1 + exp(-z))."""

    def __call__(self, z: Tensor) -> Tensor:
        """1/(1 + exp(-z))."""
        return torch.sigmoid(z)

    def slope(self, value: Tensor) -> Tensor:
        r""":math:`\sigma(1 - \sigma)`."""
        return value * (1 - value)

    def h(self, x: Tensor) -> Tensor:
        r""":math:`x\log x + (1-x)\log(1-x)` on [0, 1]."""
        return on_domain(x, 0.0, 1.0, lambda x: torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x))

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\log(1 + e^z)`."""
        return -F.logsigmoid(-widen(z))  # softplus would drop what is below 1e-9


class ELU(SmoothActivation):
    r"""z for z >= 0, :math:`\alpha(e^{z} - 1)` below.

    Raises:
        ConfigError: alpha is not in (0, 1]; above 1 sigma is not 1-Lipschitz.
    """

    rate: float = 1.0

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha <= 1:
            raise ConfigError(f"ELU: alpha must lie in (0, 1], got {alpha}")
        self.alpha = alpha

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate by expm1."""
        wide = widen(z)
        below = self.alpha * torch.expm1(self.rate * wide.clamp(max=0))
        return torch.where(wide > 0, wide, below).to(z.dtype)

    def slope(self, value: Tensor) -> Tensor:
        r"""1 above 0, :math:`\alpha + \sigma` below."""
        return torch.where(value > 0, torch.ones_like(value), self.rate * (self.alpha + value))

    def h(self, x: Tensor) -> Tensor:
        r""":math:`\tfrac12x^2` for x >= 0, :math:`\alpha[(1+u)\log(1+u) - u]` with u = x/alpha on [-alpha, 0]."""

        def value(x: Tensor) -> Tensor:
            u = (x / self.alpha).clamp(-1, 0)
            below = self.alpha / self.rate * (torch.special.xlog1py(1 + u, u) - u)
            return torch.where(x > 0, x * x / 2, below)

        return on_domain(x, -self.alpha, math.inf, value)

    def h_star(self, z: Tensor) -> Tensor:
        r""":math:`\tfrac12z^2` for z >= 0, :math:`\alpha(e^z - 1 - z)` below."""
        z = widen(z)
        below = z.clamp(max=0)
        return torch.where(z > 0, z * z / 2, self.alpha * (torch.expm1(self.rate * below) / self.rate - below))


class CELU(ELU):
    r"""z for z >= 0, :math:`\alpha(e^{z/\alpha} - 1)` below: :math:`\alpha\,\mathrm{ELU}(z/\alpha)`.

    Raises:
        ConfigError: alpha is not positive and finite.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise ConfigError(f"CELU: alpha must be positive and finite, got {alpha}")
        self.alpha, self.rate = alpha, 1 / alpha
