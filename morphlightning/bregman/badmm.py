r"""The Bregman alternating direction method of multipliers of a chain of affine layers and proximal activations.

Augmented Lagrangian, with u_l = A_{l-1} V_l^T, A_{l-1} = [x_{l-1}, 1], x_0 the input:

    sum l(y, z_L) + mu sum B_l(x_l, z_l) + sum_l [ <m_l, z_l - u_l> + rho_l/2 ||z_l - u_l||^2 + lambda_l/2 ||V_l||^2 ]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from morphlightning.bregman.activations import ReLU
from morphlightning.bregman.chain import Chain
from morphlightning.bregman.losses import OutputLoss
from morphlightning.bregman.method import (
    Method,
    Moments,
    Pass,
    Samples,
    check_below_two,
    per_layer,
)
from morphlightning.bregman.normal_equations import largest_eigenvalue
from morphlightning.errors import ConfigError, NotSupportedError

ZStep = Literal["linearized", "gradient", "bregman", "exact"]
XStep = Literal["auto", "prox", "mirror"]
WStep = Literal["exact", "gradient"]
Z_STEPS: tuple[ZStep, ...] = ("linearized", "gradient", "bregman", "exact")
X_STEPS: tuple[XStep, ...] = ("auto", "prox", "mirror")
W_STEPS: tuple[WStep, ...] = ("exact", "gradient")
RECOVERIES = 8
"""How often the blocks of auxiliary variables are repeated where a run goes on without those it had."""


class Badmm(Method):
    r"""BADMM: blocks of auxiliary variables x, pre-activations z, weights W and multipliers M, one after the other.

    Within a block all layers are independent. With t the step sizes and sigma the activation that follows layer l:

    - Z, hidden: ``linearized`` z <- [z/t - mu (sigma(z) - x_l) - m + rho u] / (1/t + rho), t = tau_z / mu;
      ``gradient`` z <- z - t (mu (sigma(z) - x_l) + m); ``bregman`` the same from u; ``exact`` the minimizer (ReLU).
      Z, output: the proximal map of the loss at u - m / rho, or a linearized step.
    - X: r = m_{l+1} + rho (z_{l+1} - u_{l+1}), t = tau_x / (rho ||W_{l+1}||^2), d = 1/t + mu;
      ``prox`` x <- prox_{(mu/d) Psi}((x/t + mu z_l + W_{l+1}^T r) / d); ``mirror``
      p <- (p/t + mu z_l + W_{l+1}^T r) / d, x <- sigma(p), p_0 = z_l, which every activation has in closed form.
    - W: ``exact`` (rho A^T A + lambda I) V^T = rho A^T (z + m / rho), or one ``gradient`` step of
      tau_w / (rho ||A||^2 + lambda).
    - M: m <- m + tau_m rho (z - u).

    What comes after W in the order is done at the beginning of the next iteration: it is local to the samples, so that
    the weights are what an iteration ends with, whether all samples are there at once or in pieces.

    Args:
        chain: The network.
        loss: The loss of its output.
        mu: Weight of the layers' Bregman losses.
        rho: Penalty of the constraints z_l = u_l, one for all layers or one for each.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        tau_z: In (0, 2).
        tau_m: In [0, 2); 0 leaves the multipliers out (a penalty method).
        tau_w: In (0, 2), of the gradient W-step.
        order: The four blocks, each once. ``"ZXWM"`` needs each u_l once in an iteration, orders with X elsewhere
            need it twice. ``"xWM"`` sweeps backward through the layers, z before x, for deep networks.
        z_step: See above.
        x_step: See above; ``auto`` is prox where it has a closed form, else mirror.
        w_step: See above.

    Raises:
        ConfigError: A setting out of its range.
        NotSupportedError: A variant that an activation has not.

    Source: the updates are derived in docs/lifted.md from Wang and Benning's BADMM and the Bregman losses of JMLR
    24(232), 2023. Nothing is proven of their convergence: three blocks, bilinear constraints.
    """

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        *,
        mu: float = 3.0,
        rho: float | Sequence[float] = 1.0,
        ridge: float | Sequence[float] = 1.0,
        tau_x: float = 1.9,
        tau_z: float = 1.0,
        tau_m: float = 1.0,
        tau_w: float = 1.0,
        order: str = "ZXWM",
        z_step: ZStep = "linearized",
        x_step: XStep = "auto",
        w_step: WStep = "exact",
    ) -> None:
        super().__init__(chain, loss, mu, ridge)
        check_settings(tau_x, tau_z, tau_m, tau_w, order, z_step, x_step, w_step)
        self.rho = per_layer("Badmm", "rho", rho, len(chain), at_least_zero=False)
        self.tau_x, self.tau_z, self.tau_m, self.tau_w = tau_x, tau_z, tau_m, tau_w
        self.z_step, self.w_step = z_step, w_step
        self.before, self.after = order.split("W")
        self.mirrors = [self._mirrors(i, x_step) for i in range(len(chain) - 1)]
        self._check_z_step()
        self._spare: list[Tensor | None] = [None] * len(chain)

    def _mirrors(self, i: int, x_step: XStep) -> bool:
        activation = self.chain.layers[i].activation
        if activation.mirror_only and x_step == "prox":
            raise NotSupportedError(f"{type(activation).__name__} has no prox X-step; set x_step='mirror' or 'auto'")
        return x_step == "mirror" or (x_step == "auto" and not activation.closed_form)

    def _check_z_step(self) -> None:
        others = {type(layer.activation).__name__ for layer in self.chain.layers[:-1]} - {ReLU.__name__}
        if self.z_step == "exact" and others:
            raise NotSupportedError(
                f"the exact Z-step is built for ReLU alone, the network has {', '.join(sorted(others))}; "
                "set z_step='linearized'"
            )

    # ------------------------------------------------------------------------------------------------ an iteration
    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor) -> Samples:
        """Take z from a forward pass, x = sigma(z), m = 0, p = z.

        In a run that goes on without the variables that it had, the blocks other than W are repeated some times: the
        weights would otherwise answer to multipliers of 0 as at the beginning.
        """
        samples: Samples = {}
        pre = self.chain.forward(x.to(self.dtype))
        for i, z in enumerate(pre):
            samples |= {f"z{i + 1}": z, f"m{i + 1}": torch.zeros_like(z)}
            if i < len(self.chain) - 1:
                samples[f"x{i + 1}"] = self.chain.layers[i].activation(z)
                if self.mirrors[i]:
                    samples[f"p{i + 1}"] = z.clone()
        if self.iteration:
            batch = _Batch(self, samples, x, y)
            for block in RECOVERIES * (self.before + self.after):
                _BLOCKS[block](batch)
        return samples

    @torch.no_grad()
    def piece(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """As the base."""
        batch = _Batch(self, samples, x, y)
        if self.monitored:
            self.take_down(batch, batch.z, batch.y)
            batch.take_down_residuals()
            earlier = [z.clone() for z in batch.z]
        for block in (self.after if self.iteration else "") + self.before:
            _BLOCKS[block](batch)
        if self.monitored:
            batch.take_down_moves(earlier)
        self.add_moments(batch.x, [batch.target(i) for i in range(len(self.chain))])

    def spare(self, i: int, like: Tensor) -> Tensor:
        """Room for the residual or the target of layer i: new memory would cost as much as they do."""
        spare = self._spare[i]
        if spare is None or spare.shape != like.shape:
            spare = self._spare[i] = torch.empty_like(like)
        return spare

    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """Exact least squares, or a gradient step on it."""
        if self.w_step == "gradient":
            return [self._gradient_step(i, gram, moment) for i, (gram, moment) in enumerate(moments)]
        return [self.regress(i, each, self.ridge[i] / self.rho[i]) for i, each in enumerate(moments)]

    def ridge_of(self, i: int) -> float | None:
        """As the base, lambda / rho."""
        return None if self.w_step == "gradient" else self.ridge[i] / self.rho[i]

    def _gradient_step(self, i: int, gram: Tensor, moment: Tensor) -> Tensor:
        rho, ridge, v = self.rho[i], self.ridge[i], self.weights(i)
        curvature = rho * largest_eigenvalue(gram, self.chain.layers[i].affine.name)[:, None, None] + ridge
        new: Tensor = v + self.tau_w / curvature * (rho * (moment - v @ gram) - ridge * v)
        return new

    def finish_figures(self, sums: Mapping[str, Tensor], samples: Tensor) -> dict[str, Tensor]:
        """Relative residuals, the largest over the layers.

        primal ||z_l - u_l|| / max(||z_l||, ||u_l||), dual rho ||z_l - z_l before|| / max(||m_l||, rho ||z_l||).
        """
        layers = range(len(self.chain))
        primal = [sums[f"z-u/{i}"] / torch.maximum(sums[f"z/{i}"], sums[f"u/{i}"]).clamp_min(1e-300) for i in layers]
        dual = [
            sums[f"move/{i}"] / torch.maximum(sums[f"m/{i}"], self.rho[i] ** 2 * sums[f"z/{i}"]).clamp_min(1e-300)
            for i in layers
        ]
        return {
            "primal_residual": torch.stack(primal).max().sqrt(),
            "dual_residual": torch.stack(dual).max().sqrt(),
        }


class _Batch(Pass):
    """A batch with its auxiliary variables, which the blocks update in place."""

    def __init__(self, method: Badmm, samples: Samples, x: Tensor, y: Tensor) -> None:
        super().__init__(method.chain, samples, x.to(method.dtype))
        self._method, layers = method, len(method.chain)
        self.z = [samples[f"z{i}"] for i in range(1, layers + 1)]
        self.m = [samples[f"m{i}"] for i in range(1, layers + 1)]
        self.y = method.loss.targets(y, self.z[-1])
        self._residuals: dict[int, Tensor] = {}
        self._output_is_stationary = False

    def set_x(self, i: int, x: Tensor) -> None:
        """As the base; what was derived from the old one is gone."""
        super().set_x(i, x)
        self._residuals.pop(i, None)
        self._output_is_stationary &= i < len(self.z) - 1

    def residual(self, i: int) -> Tensor:
        """The residual z - u of layer i, kept until one of both changes."""
        if i not in self._residuals:
            self._residuals[i] = torch.sub(self.z[i], self.u(i), out=self._method.spare(i, self.z[i]))
        return self._residuals[i]

    def pull(self, i: int) -> Tensor:
        """How the constraint of layer i pulls at u, m + rho (z - u).

        For the output, while its z is the minimizer of l(z, y) + <m, z - u> + rho/2 ||z - u||^2, this is minus the
        derivative of the loss, which takes one pass over memory less.
        """
        weight = self._method.loss.lipschitz
        if i == len(self.z) - 1 and self._output_is_stationary:
            r = torch.sub(self.y, self.z[i], out=self._method.spare(i, self.z[i]))
            return r if weight == 1 else r.mul_(weight)
        return torch.add(self.m[i], self.residual(i), alpha=self._method.rho[i], out=self._residuals.pop(i))

    def target(self, i: int) -> Tensor:
        """What least squares aims at for layer i, z + m / rho."""
        self._residuals.pop(i, None)
        spare = self._method.spare(i, self.z[i])
        return torch.add(self.z[i], self.m[i], alpha=1 / self._method.rho[i], out=spare)

    # ---------------------------------------------------------------------------------------------------------- blocks
    def multipliers(self) -> None:
        """The M-step of all layers."""
        self._output_is_stationary = False
        for i, (m, rho) in enumerate(zip(self.m, self._method.rho, strict=True)):
            m.add_(self.residual(i), alpha=self._method.tau_m * rho)

    def all_x(self) -> None:
        """The X-step of all layers; each sees z alone of its neighbours."""
        for i in range(1, len(self.z)):
            self.step_x(i)

    def all_z(self) -> None:
        """The Z-step of all layers."""
        for i in range(len(self.z)):
            self.step_z(i)

    def sweep(self) -> None:
        """z_L, x_{L-1}, z_{L-1}, ..., z_1."""
        for i in reversed(range(len(self.z))):
            self.step_z(i)
            if i:
                self.step_x(i)

    def step_x(self, i: int) -> None:
        """The X-step of the input of layer i."""
        method, x = self._method, self.x[i]
        r = self.pull(i)
        inverse = float(method.rho[i] * method.squared_norm(i, x) / method.tau_x)
        pulled = method.chain.layers[i].affine.adjoint(r, x).add_(self.z[i - 1], alpha=method.mu)
        self.move_x(i, pulled, method.mu, inverse, method.mirrors[i - 1])

    def step_z(self, i: int) -> None:
        """The Z-step of layer i."""
        method, z, m, rho = self._method, self.z[i], self.m[i], self._method.rho[i]
        self._residuals.pop(i, None)
        if i == len(self.z) - 1:
            if method.loss.is_quadratic:
                method.loss.prox_(torch.sub(self.u(i), m, alpha=1 / rho, out=z), self.y, rho)
                self._output_is_stationary = True
                return
            slope, t = method.loss.gradient(z, self.y), method.tau_z / method.loss.lipschitz
        else:
            if method.z_step == "exact":
                z.copy_(self._exact_z(i))
                return
            if method.z_step == "bregman":
                z.copy_(self.u(i))
            slope = method.chain.layers[i].activation.gradient(self.x[i + 1], z).mul_(method.mu)
            t = method.tau_z / method.mu
        if i < len(self.z) - 1 and method.z_step != "linearized":
            z.sub_(slope.add_(m), alpha=t)
        else:
            z.div_(t).sub_(slope).sub_(m).add_(self.u(i), alpha=rho).div_(1 / t + rho)

    def _exact_z(self, i: int) -> Tensor:
        """The minimizer over z for ReLU, a convex piecewise quadratic with its kink at 0."""
        mu, rho = self._method.mu, self._method.rho[i]
        c = torch.add(self.u(i) * rho, self.x[i + 1], alpha=mu).sub_(self.m[i])
        return torch.where(c > 0, c / (mu + rho), c / rho)

    # -------------------------------------------------------------------------------------------------------- monitors
    def take_down_residuals(self) -> None:
        """Squares of z - u, z, u and m by layer."""
        for i, (z, m) in enumerate(zip(self.z, self.m, strict=True)):
            for name, values in (("z-u", self.residual(i)), ("z", z), ("u", self.u(i)), ("m", m)):
                self._method.note(f"{name}/{i}", values.square().sum())

    def take_down_moves(self, earlier: Sequence[Tensor]) -> None:
        """Squares of rho (z - z before) by layer."""
        for i, (z, old, rho) in enumerate(zip(self.z, earlier, self._method.rho, strict=True)):
            self._method.note(f"move/{i}", rho**2 * (z - old).square().sum())


_BLOCKS: dict[str, Callable[[_Batch], None]] = {
    "M": _Batch.multipliers,
    "X": _Batch.all_x,
    "Z": _Batch.all_z,
    "x": _Batch.sweep,
}


def check_settings(
    tau_x: float, tau_z: float, tau_m: float, tau_w: float, order: str, z_step: str, x_step: str, w_step: str
) -> None:
    """Raise ConfigError for a setting that no network could be trained with."""
    check_below_two("Badmm", tau_x=tau_x, tau_z=tau_z, tau_w=tau_w)
    if not 0 <= tau_m < 2:
        raise ConfigError(f"Badmm: tau_m must lie in [0, 2), got {tau_m}")
    if sorted(order) not in (["M", "W", "X", "Z"], ["M", "W", "x"]):
        raise ConfigError(f"Badmm: order must hold X, Z, W and M once each, or x, W and M, got {order!r}")
    for name, given, known in (("z_step", z_step, Z_STEPS), ("x_step", x_step, X_STEPS), ("w_step", w_step, W_STEPS)):
        if given not in known:
            raise ConfigError(f"Badmm: {name} must be one of {', '.join(known)}, got {given!r}")
