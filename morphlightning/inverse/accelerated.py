"""Accelerated proximal gradient descent, for every sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, DtypeError, NonFiniteError, ShapeError

Gradient = Callable[..., Tensor]
Prox = Callable[..., Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Solution:
    """What an iterative method found for the N samples of a batch.

    Attributes:
        x: The last iterates, (N, ...).
        iterations: How many steps each sample took, (N,).
        residual: The last ||x_k - x_{k-1}|| / ||x_k|| of each sample, (N,).
        converged: Whether that is within the tolerance, (N,).
        history: The residuals after every iteration, (iterations, N); a sample that has stopped repeats its last.
    """

    x: Tensor
    iterations: Tensor
    residual: Tensor
    converged: Tensor
    history: Tensor


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
    is critical.

    Every sample has momentum, restarts and stopping of its own: it stops, and takes no further part, when
    ||x_{k+1} - x_k|| <= tolerance ||x_{k+1}||. Its result does not depend on the others.

    Args:
        gradient: ``gradient(z, *data)`` is grad f, of z's shape. It is called for the samples that still move.
        x: The start, (N, ...), float32 or float64. It is not written to.
        lipschitz: L > 0, a Lipschitz constant of grad f; a number or (N,).
        data: Tensors with a row for each sample, such as observations; the gradient and the prox get the rows of the
            samples that still move.
        prox: ``prox(z, step, *data)`` is prox_{step g}, with ``step`` of shape (n, 1, ...). None for g = 0.
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
    if tolerance < 0 or max_iterations < 1:
        raise ConfigError(
            f"minimize: expected tolerance >= 0 and max_iterations >= 1, got {tolerance}, {max_iterations}"
        )
    moving = _Moving(x, data, lipschitz, strong_convexity, weak_convexity)
    count, found = len(x), x.clone(memory_format=torch.contiguous_format)
    residual = found.new_full((count,), torch.inf)
    iterations = torch.zeros(count, dtype=torch.long, device=x.device)
    history = []
    for iteration in range(1, max_iterations + 1):
        if not len(moving.rows):
            break
        latest = moving.advance(gradient, prox, restart)
        residual[moving.rows], iterations[moving.rows] = latest, iteration
        history.append(residual.clone())
        stopped = ~(latest > tolerance)  # NaN stops too
        if callback is not None:
            found[moving.rows] = moving.x
            callback(iteration, found, residual)
        if stopped.any():
            _check_finite(latest, moving.rows, iteration)
            found[moving.rows[stopped]] = moving.x[stopped]
            moving.keep(~stopped)
    found[moving.rows] = moving.x
    every = torch.stack(history) if history else residual.new_empty(0, count)
    return Solution(found, iterations, residual, residual <= tolerance, every)


class _Moving:
    """The samples that have not stopped: iterates, momentum, steps and data, a row each."""

    def __init__(
        self,
        x: Tensor,
        data: Sequence[Tensor],
        lipschitz: float | Tensor,
        strong_convexity: float | Tensor,
        weak_convexity: float | Tensor | None,
    ) -> None:
        if not x.is_floating_point():
            raise DtypeError(f"minimize: expected a start of a real dtype, got {x.dtype}: x.float() is one")
        if x.dim() < 2 or any(len(each) != len(x) for each in data):
            sizes = [tuple(each.shape) for each in data]
            raise ShapeError(
                f"minimize: expected x (N, ...) and data with N rows, got x {tuple(x.shape)}, data {sizes}"
            )
        constant = _per_sample("lipschitz", lipschitz, x)
        strong = _per_sample("strong_convexity", strong_convexity, x)
        self.safeguarded = weak_convexity is not None
        weak = _per_sample("weak_convexity", 0.0 if weak_convexity is None else weak_convexity, x)
        if not bool(((constant > 0) & constant.isfinite()).all()):
            raise ConfigError(f"minimize: lipschitz must be positive and finite, got {lipschitz}")
        if not bool(((strong >= 0) & (strong < constant)).all()):
            raise ConfigError(f"minimize: strong_convexity must lie in [0, lipschitz), got {strong_convexity}")
        if not bool(((weak >= 0) & weak.isfinite()).all()) or (self.safeguarded and bool((strong > 0).any())):
            raise ConfigError(
                f"minimize: weak_convexity must be >= 0 and finite, and f is not strongly convex too, got "
                f"{weak_convexity} beside strong_convexity {strong_convexity}"
            )
        self.rows = torch.arange(len(x), device=x.device)
        self.x, self.data = x.clone(memory_format=torch.contiguous_format), tuple(data)
        self.step, self.strong, self.weak = 1 / constant, strong / constant, weak / constant
        self.t = torch.ones_like(constant)
        self.z = self.x.clone()
        self._allocate()

    def _allocate(self) -> None:
        self.ahead, self.new = torch.zeros_like(self.x), torch.empty_like(self.x)

    def keep(self, chosen: Tensor) -> None:
        """Go on with the chosen rows alone."""
        for name in ("rows", "x", "step", "strong", "weak", "t", "z"):
            setattr(self, name, getattr(self, name)[chosen])
        self.data = tuple(each[chosen] for each in self.data)
        ahead = self.ahead[chosen]
        self._allocate()
        self.ahead = ahead

    def advance(self, gradient: Gradient, prox: Prox | None, restart: bool) -> Tensor:
        """One step of every row; its ||x_{k+1} - x_k|| / ||x_{k+1}||, infinite where the safeguard refused it."""
        step = _beside(self.step, self.x)
        slope = gradient(self.z, *self.data)
        if slope.shape != self.z.shape:
            raise ShapeError(
                f"minimize: the gradient at {tuple(self.z.shape)} has the shape {tuple(slope.shape)}; pass what "
                "belongs to each sample as data=, since samples that have stopped are left out"
            )
        torch.addcmul(self.z, slope, step, value=-1, out=self.new)
        if prox is not None:
            self.new.copy_(prox(self.new, step, *self.data))
        drop = self.z.sub_(self.new)  # G / L
        refused = self._refuse(drop) if self.safeguarded else None
        torch.sub(self.new, self.x, out=self.ahead)
        if refused is not None:
            self.t.masked_fill_(refused, 1.0)
        elif restart:
            self.t.masked_fill_(_dot(drop, self.ahead) > 0, 1.0)
        moved = _relative(_dot(self.ahead, self.ahead), _dot(self.new, self.new))
        self.ahead.mul_(_beside(self._momentum(), self.x))
        self.x, self.new = self.new, self.x
        torch.add(self.x, self.ahead, out=self.z)
        return moved if refused is None else moved.masked_fill(refused, torch.inf)

    def _refuse(self, drop: Tensor) -> Tensor:
        """Which steps need not decrease F; those rows stay where they are."""
        refused = _dot(drop, self.ahead) + self.weak / 2 * _dot(self.ahead, self.ahead) > 0
        if refused.any():
            self.new[refused] = self.x[refused]
        return refused

    def _momentum(self) -> Tensor:
        """b_k, and t moves on."""
        rest = 1 - self.strong * self.t.square()
        t = (rest + (rest.square() + 4 * self.t.square()).sqrt()) / 2
        momentum = (self.t - 1) / t * (1 - self.strong * t) / (1 - self.strong)
        self.t = t
        return momentum


def _per_sample(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.dim() > 1 or (value.dim() == 1 and len(value) != len(x)):
        raise ShapeError(f"minimize: {name} must be a number or have the shape ({len(x)},), got {tuple(value.shape)}")
    return value.expand(len(x)).clone()


def _beside(value: Tensor, x: Tensor) -> Tensor:
    """A value for each sample, (N,), in a shape that broadcasts with x."""
    return value.view(-1, *[1] * (x.dim() - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product


def _relative(step: Tensor, length: Tensor) -> Tensor:
    """The root of a quotient of squared norms; NaN where they have left the dtype's range, 0 for a step of 0 to 0."""
    quotient = (step / length.clamp_min(torch.finfo(length.dtype).tiny)).sqrt()
    return torch.where(length.isfinite(), quotient, torch.nan)


def _check_finite(residual: Tensor, rows: Tensor, iteration: int) -> None:
    broken = residual.isnan()
    if broken.any():
        raise NonFiniteError(
            f"minimize: samples {rows[broken].tolist()} are not finite after iteration {iteration}: check that the "
            "start and the gradient are finite and that lipschitz bounds the gradient's Lipschitz constant"
        )
