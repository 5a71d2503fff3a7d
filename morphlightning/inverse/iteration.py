"""What iterative methods share: every sample of a batch stops on its own, and all say how it went."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from rich.console import Console
from torch import Tensor

from morphlightning.errors import ConfigError, DtypeError, NonFiniteError, ShapeError

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


@dataclass
class PrintResiduals:
    """A callback that prints residuals as they fall.

    Args:
        every: Iterations from one line to the next.
        console: Where to; the terminal by default.
    """

    every: int = 10
    console: Console = field(default_factory=Console)

    def __call__(self, iteration: int, x: Tensor, residual: Tensor) -> None:
        """Print a line if it is time for one."""
        if iteration % self.every == 0:
            largest, middle = float(residual.max()), float(residual.median())
            self.console.print(f"iteration {iteration:5d}  residual: median {middle:.2e}, largest {largest:.2e}")


class Iteration(ABC):
    """The samples that have not stopped, a row each.

    Args:
        x: The start, (N, ...).
        data: Tensors with a row for each sample.

    Attributes:
        state: The names of all tensors with a row for each sample.
        rows: Which samples of the batch are left.

    Raises:
        DtypeError: x is not real.
        ShapeError: x has fewer than two axes, or data another number of rows.
    """

    state: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, x: Tensor, data: Sequence[Tensor] = ()) -> None:
        name = type(self).__name__
        if not x.is_floating_point():
            raise DtypeError(f"{name}: expected a start of a real dtype, got {x.dtype}: x.float() is one")
        if x.dim() < 2 or any(len(each) != len(x) for each in data):
            sizes = [tuple(each.shape) for each in data]
            raise ShapeError(f"{name}: expected x (N, ...) and data with N rows, got x {tuple(x.shape)}, data {sizes}")
        self.rows = torch.arange(len(x), device=x.device)
        self.x, self.data = x.clone(memory_format=torch.contiguous_format), tuple(data)

    @abstractmethod
    def advance(self) -> Tensor:
        """One step of every row; returns how far each went: ||x_{k+1} - x_k|| / ||x_{k+1}||."""

    def settled(self) -> Tensor | bool:
        """Which rows may stop if their last step was short enough."""
        return True

    def keep(self, chosen: Tensor) -> None:
        """Go on with the chosen rows alone."""
        for name in ("rows", *self.state):
            setattr(self, name, getattr(self, name)[chosen])
        self.data = tuple(each[chosen] for each in self.data)


def run(iteration: Iteration, tolerance: float, max_iterations: int, callback: Callback | None = None) -> Solution:
    """Advance until every sample moves by no more than the tolerance; those that have stopped are left out.

    Args:
        iteration: The samples at their start.
        tolerance: On ||x_{k+1} - x_k|| / ||x_{k+1}||; at 0 only a step of length 0 stops.
        max_iterations: At most so many steps.
        callback: ``callback(iteration, x, residual)`` after each step, with all samples.

    Raises:
        ConfigError: A setting out of its range.
        NonFiniteError: The iterates become NaN or infinite.
    """
    name = type(iteration).__name__
    if tolerance < 0 or max_iterations < 1:
        raise ConfigError(f"{name}: expected tolerance >= 0 and max_iterations >= 1, got {tolerance}, {max_iterations}")
    found = iteration.x.clone()
    residual = found.new_full((len(found),), torch.inf)
    iterations = torch.zeros(len(found), dtype=torch.long, device=found.device)
    history = []
    for number in range(1, max_iterations + 1):
        if not len(iteration.rows):
            break
        latest = iteration.advance()
        residual[iteration.rows], iterations[iteration.rows] = latest, number
        history.append(residual.clone())
        stopped = ~(latest > tolerance) & (latest.isnan() | iteration.settled())  # NaN stops too
        if callback is not None:
            found[iteration.rows] = iteration.x
            callback(number, found, residual)
        if stopped.any():
            _check_finite(name, latest, iteration.rows, number)
            found[iteration.rows[stopped]] = iteration.x[stopped]
            iteration.keep(~stopped)
    found[iteration.rows] = iteration.x
    every = torch.stack(history) if history else residual.new_empty(0, len(found))
    return Solution(found, iterations, residual, residual <= tolerance, every)


def per_sample(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one for each sample, as (N,).

    Raises:
        ShapeError: It is neither.
    """
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.dim() > 1 or (value.dim() == 1 and len(value) != len(x)):
        raise ShapeError(f"{name} must be a number or have the shape ({len(x)},), got {tuple(value.shape)}")
    return value.expand(len(x)).clone()


def beside(value: Tensor, x: Tensor) -> Tensor:
    """A value for each sample, (N,), in a shape that broadcasts with x."""
    return value.view(-1, *[1] * (x.dim() - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, (N,)."""
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product


def relative(step: Tensor, x: Tensor) -> Tensor:
    """||step|| / ||x|| of each sample: NaN where that has left the range of its dtype, 0 for a step of length 0."""
    moved, length = inner(step, step), inner(x, x)
    quotient = (moved / length.clamp_min(torch.finfo(length.dtype).tiny)).sqrt()
    return torch.where(length.isfinite(), quotient, torch.nan)


def _check_finite(name: str, residual: Tensor, rows: Tensor, number: int) -> None:
    broken = residual.isnan()
    if broken.any():
        raise NonFiniteError(
            f"{name}: samples {rows[broken].tolist()} are not finite after iteration {number}: check that the start "
            "and the data are finite, and that the declared Lipschitz constant or norm is an upper bound"
        )
