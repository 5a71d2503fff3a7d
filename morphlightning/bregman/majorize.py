r"""Lifted training without multipliers: the lifted Bregman objective itself, by majorization and minimization.

    F(V, x) = sum l(y, u_L) + mu sum_{l<L} B_l(x_l, u_l) + sum_l lambda_l/2 ||V_l||^2,   u_l = A_{l-1} V_l^T

is convex in each block. Its derivatives in u are mu (sigma(u_l) - x_l) and the loss's own: no activation is
differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from morphlightning.bregman.chain import Chain
from morphlightning.bregman.losses import OutputLoss
from morphlightning.bregman.method import Method, Moments, Pass, Samples, check_below_two
from morphlightning.errors import ConfigError


class LiftedBatch(Pass):
    """A batch of the lifted objective: its x-blocks by proximal gradient steps."""

    def __init__(self, method: Lifted, samples: Samples, x: Tensor, y: Tensor) -> None:
        super().__init__(method.chain, samples, x.to(method.dtype))
        self._method = method
        self.y = method.loss.targets(y, self.u(len(method.chain) - 1))

    def slope(self, i: int) -> Tensor:
        """The derivative of the objective in u_{i+1}."""
        method, u = self._method, self.u(i)
        if i == len(method.chain) - 1:
            return method.loss.gradient(u, self.y)
        return method.chain.layers[i].activation.gradient(self.x[i + 1], u).mul_(method.mu)

    def targets(self) -> list[Tensor]:
        """For all layers u - slope / c: least squares on them minimizes a majorizer of the objective."""
        *hidden, _ = range(len(self._method.chain))
        inner = [self.u(i) - self.slope(i).div_(self._method.mu) for i in hidden]
        loss = self._method.loss
        return [*inner, self.y if loss.is_quadratic else loss.target(self.u(len(hidden)), self.y)]

    def sweep(self) -> None:
        """x_{L-1}, ..., x_1, each by ``inner_x`` steps."""
        for i in reversed(range(1, len(self._method.chain))):
            for _ in range(self._method.inner_x):
                self._step_x(i)

    def _step_x(self, i: int) -> None:
        method, (before, layer), x = self._method, self._method.chain.layers[i - 1 : i + 1], self.x[i]
        mirrors = before.activation.mirror_only
        tau = min(method.tau_x, 1.0) if mirrors else method.tau_x
        inverse = float(method.curvature(i) * method.squared_norm(i, x) / tau)
        pulled = layer.affine.adjoint(self.slope(i), x).neg_().add_(self.u(i - 1), alpha=method.mu)
        self.move_x(i, pulled, method.mu, inverse, mirrors)


class Lifted(Method):
    """Methods on the lifted objective.

    X-step of layer l, from the last to the first: with g = W_{l+1}^T dF/du_{l+1}, c the curvature of what follows (that
    of the loss, or mu), t = tau_x / (c ||W_{l+1}||^2) and d = 1/t + mu,
    x <- prox_{(mu/d) Psi}((x/t + mu u_l - g) / d). Activations without a prox (softmax) take the mirror step
    p <- (p/t + mu u_l - g) / d, x <- sigma(p), with tau_x at most 1.

    Args:
        chain: The network.
        loss: The loss of its output.
        mu: Weight of the layers' Bregman losses.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        inner_x: X-steps of a layer in one sweep.
    """

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        mu: float,
        ridge: float | Sequence[float],
        tau_x: float,
        inner_x: int,
    ) -> None:
        super().__init__(chain, loss, mu, ridge)
        check_below_two(type(self).__name__, tau_x=tau_x)
        if inner_x < 1:
            raise ConfigError(f"{type(self).__name__}: inner_x must be >= 1, got {inner_x}")
        self.tau_x, self.inner_x = tau_x, inner_x

    def curvature(self, i: int) -> float:
        """A Lipschitz constant of the derivative of the objective in u of layer i."""
        return self.loss.lipschitz if i == len(self.chain) - 1 else self.mu

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor) -> Samples:
        """Take x from a forward pass; where x takes mirror steps, p too."""
        samples: Samples = {}
        for i, u in enumerate(self.chain.forward(x.to(self.dtype))[:-1]):
            samples[f"x{i + 1}"] = self.chain.layers[i].activation(u)
            if self.chain.layers[i].activation.mirror_only:
                samples[f"p{i + 1}"] = u
        return samples

    def sweep(self, batch: LiftedBatch) -> LiftedBatch:
        """The X-steps of a batch, which is taken down before them where the iteration is monitored."""
        if self.monitored:
            self.take_down(batch, [batch.u(i) for i in range(len(self.chain))], batch.y)
        batch.sweep()
        return batch


class MajorizeMinimize(Lifted):
    """The lifted objective over all samples: never increasing.

    V-step of layer l: towards the minimizer of a quadratic majorizer, V <- V + tau_w (V' - V),
    V' (c A^T A + lambda I) = c t^T A with the targets t = u - (dF/du_l) / c. For squared error the targets of the
    output layer are those of the network.

    Args:
        chain: The network.
        loss: The loss of its output.
        mu: Weight of the layers' Bregman losses.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        tau_w: In (0, 2).
        inner_x: X-steps of a layer in one iteration.

    Raises:
        ConfigError: A setting out of its range.

    Source: the objective is that of Wang and Benning, JMLR 24(232), 2023; that it never increases is derived in
    docs/lifted.md.
    """

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        *,
        mu: float = 3.0,
        ridge: float | Sequence[float] = 1.0,
        tau_x: float = 1.9,
        tau_w: float = 1.0,
        inner_x: int = 1,
    ) -> None:
        super().__init__(chain, loss, mu, ridge, tau_x, inner_x)
        check_below_two("MajorizeMinimize", tau_w=tau_w)
        self.tau_w = tau_w

    @torch.no_grad()
    def piece(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """As the base."""
        batch = self.sweep(LiftedBatch(self, samples, x, y))
        self.add_moments(batch.x, batch.targets())

    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """The V-step of all layers."""
        found = [self.regress(i, each, self.ridge_of(i)) for i, each in enumerate(moments)]
        if self.tau_w == 1:
            return found
        return [torch.lerp(self.weights(i), new, self.tau_w) for i, new in enumerate(found)]

    def ridge_of(self, i: int) -> float:
        """As the base, lambda / c."""
        return self.ridge[i] / self.curvature(i)
