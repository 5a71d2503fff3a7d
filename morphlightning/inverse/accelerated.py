"""Accelerated proximal gradient descent, for every sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.inverse.iteration import Callback, Iteration, Solution, beside, inner, per_sample, relative, run

Gradient = Callable[..., Tensor]
Prox = Callable[..., Tensor]


@torch.no_grad()
def minimize(
    gradient: Gradient,
    x: Tensor,
    *,
    lipschitz: float | Tensor,
    data: Sequence[Tensor] = (),
    prox: Prox | None = None,
    strong_convexity: float | Tensor = 0.0,
    weak_convexity: float | Tensor | None = None,
    restart: bool = True,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    callback: Callback | None = None,
) -> Solution:
    r"""Minimize F(x) = f(x) + g(x) by accelerated proximal gradient steps.

    x_{k+1} = prox_{g/L}(z_k - grad f(z_k) / L), z_{k+1} = x_{k+1} + b_k (x_{k+1} - x_k), where
    b_k = (t_k - 1) / t_{k+1} and t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2. With f m-strongly convex and q = m / L, b_k is
    multiplied by (1 - q t_{k+1}) / (1 - q), and t_{k+1} = (1 - q t_k^2 + sqrt((1 - q t_k^2)^2 + 4 t_k^2)) / 2.

    Restart: the momentum is dropped (t = 1) when <z_k - x_{k+1}, x_{k+1} - x_k> > 0.

    Safeguard, where ``weak_convexity`` w is given (f + w/2 ||.||^2 convex, g convex): with G = L (z_k - x_{k+1}), a
    step with <G, z_k - x_k> + w/2 ||z_k - x_k||^2 > 0 is not taken but repeated from z_k = x_k. All steps taken have
    F(x_{k+1}) <= F(x_k) - ||G||^2 / 2L, so F decreases, G tends to 0 where F is bounded below, and every limit point
    is critical. Without momentum steps are short, wherever they are taken: while they grow again, no sample stops.

    Every sample has momentum, restarts and stopping of its own: it stops, and takes no further part, when
    ||x_{k+1} - x_k|| <= tolerance ||x_{k+1}||. Its result does not depend on the others.

    Args:
        gradient: ``gradient(z, *data)`` is grad f, of z's shape. It is called for the samples that still move.
        x: The start, (N, ...), float32 or float64. It is not written to.
        lipschitz: L > 0, a Lipschitz constant of grad f; a number or (N,).
        data: Tensors with a row for each sample, such as observations; the gradient and the prox get the rows of the
            samples that still move.
        prox: ``prox(z, step, *data)`` is prox_{step g}, with ``step`` of shape (n, 1, ...); it may write to z. None
            for g = 0.
        strong_convexity: m in [0, L), a number or (N,).
        weak_convexity: w >= 0, a number or (N,), makes the method safe for f that are not convex. None: f is convex.
        restart: Whether to restart. The safeguard has restarts of its own.
        tolerance: Of the stopping rule; at 0 only a step of length 0 stops.
        max_iterations: At most so many gradients.
        callback: ``callback(iteration, x, residual)`` after each iteration, with all samples.

    Raises:
        ConfigError: A setting out of its range.
        DtypeError: x is not real.
        ShapeError: What belongs to each sample has another number of rows, or the gradient has another shape than x.
        NonFiniteError: The iterates become NaN or infinite.

    Source: Beck and Teboulle 2009 (FISTA); Chambolle and Pock 2016, algorithm 5 (strong convexity); O'Donoghue and
    Candes 2015 (restart). The safeguard is of the kind of Goujon et al. 2023, arXiv 2308.10542; its bound is derived
    here.
    """
    moving = ProximalGradient(x, data, gradient, prox, lipschitz, strong_convexity, weak_convexity, restart)
    return run(moving, tolerance, max_iterations, callback)


class ProximalGradient(Iteration):
    """The iteration of :func:`minimize`, with its arguments."""

    state = ("x", "z", "ahead", "t", "step", "strong", "weak", "last", "growing")

    def __init__(
        self,
        x: Tensor,
        data: Sequence[Tensor],
        gradient: Gradient,
        prox: Prox | None,
        lipschitz: float | Tensor,
        strong_convexity: float | Tensor,
        weak_convexity: float | Tensor | None,
        restart: bool,
    ) -> None:
        super().__init__(x, data)
        self.gradient, self.prox, self.restart = gradient, prox, restart
        constant = per_sample("minimize: lipschitz", lipschitz, x)
        strong = per_sample("minimize: strong_convexity", strong_convexity, x)
        self.safeguarded = weak_convexity is not None
        weak = per_sample("minimize: weak_convexity", 0.0 if weak_convexity is None else weak_convexity, x)
        if not bool(((constant > 0) & constant.isfinite()).all()):
            raise ConfigError(f"minimize: lipschitz must be positive and finite, got {lipschitz}")
        if not bool(((strong >= 0) & (strong < constant)).all()):
            raise ConfigError(f"minimize: strong_convexity must lie in [0, lipschitz), got {strong_convexity}")
        if not bool(((weak >= 0) & weak.isfinite()).all()) or (self.safeguarded and bool((strong > 0).any())):
            raise ConfigError(
                f"minimize: weak_convexity must be >= 0 and finite, and f is not strongly convex too, got "
                f"{weak_convexity} beside strong_convexity {strong_convexity}"
            )
        self.step, self.strong, self.weak = 1 / constant, strong / constant, weak / constant
        self.t, self.last = torch.ones_like(constant), torch.zeros_like(constant)
        self.growing = torch.zeros_like(constant, dtype=torch.bool)
        self.z, self.ahead = self.x.clone(), torch.zeros_like(self.x)  # ahead: z - x
        self._new = torch.empty_like(self.x)

    def keep(self, chosen: Tensor) -> None:
        """As the base."""
        super().keep(chosen)
        self._new = torch.empty_like(self.x)

    def advance(self) -> Tensor:
        """As the base; infinite where the safeguard refused the step."""
        step = beside(self.step, self.x)
        slope = self.gradient(self.z, *self.data)
        if slope.shape != self.z.shape:
            raise ShapeError(
                f"minimize: the gradient at {tuple(self.z.shape)} has the shape {tuple(slope.shape)}; pass what "
                "belongs to each sample as data=, since samples that have stopped are left out"
            )
        new = torch.addcmul(self.z, slope, step, value=-1, out=self._new)
        if self.prox is not None:
            new.copy_(self.prox(new, step, *self.data))
        drop = self.z.sub_(new)  # G / L
        refused = self._refuse(drop, new) if self.safeguarded else None
        torch.sub(new, self.x, out=self.ahead)
        if refused is not None:
            self.t.masked_fill_(refused, 1.0)
        elif self.restart:
            self.t.masked_fill_(inner(drop, self.ahead) > 0, 1.0)
        moved = relative(self.ahead, new)
        self.ahead.mul_(beside(self._momentum(), new))
        self.x, self._new = new, self.x
        torch.add(self.x, self.ahead, out=self.z)
        if refused is None:
            return moved
        self.growing = moved > self.last
        self.last = moved  # 0 where the step was refused
        return moved.masked_fill(refused, torch.inf)

    def settled(self) -> Tensor | bool:
        """As the base."""
        return ~self.growing if self.safeguarded else True

    def _refuse(self, drop: Tensor, new: Tensor) -> Tensor:
        """Which steps need not decrease F; those rows stay where they are."""
        refused = inner(drop, self.ahead) + self.weak / 2 * inner(self.ahead, self.ahead) > 0
        if refused.any():
            new[refused] = self.x[refused]
        return refused

    def _momentum(self) -> Tensor:
        """b_k, and t moves on."""
        rest = 1 - self.strong * self.t.square()
        t = (rest + (rest.square() + 4 * self.t.square()).sqrt()) / 2
        momentum = (self.t - 1) / t * (1 - self.strong * t) / (1 - self.strong)
        self.t = t
        return momentum
