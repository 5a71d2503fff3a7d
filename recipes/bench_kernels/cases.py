"""What is timed: a case is one problem, its candidates are the operators that solve it or that it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from morphlightning import backends

Mode = Literal["forward", "step"]
MODES: dict[Mode, str] = {"forward": "forward", "step": "forward + backward"}


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run."""

    device: str
    threads: int
    compile: bool
    quick: bool

    def backends(self) -> list[str]:
        """Backends that compute on the device, the one that is used without a choice first."""
        working = [name for name, state in backends.available().items() if state == "available"]
        return sorted(filter(self._computes, working), key=lambda name: name != backends.current(self.device))

    def _computes(self, name: str) -> bool:
        with backends.use(name):
            return backends.current(self.device) == name

    def shapes(self, full: Sequence[tuple[int, ...]], tiny: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """The shapes of a group, or one tiny shape to try the command."""
        return [tiny] if self.quick else full

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """A leaf of normal random numbers."""
        return (torch.randn(shape) * scale).to(self.device).requires_grad_()

    def fresh(self, leaf: Tensor) -> Tensor:
        """Another leaf with the same numbers."""
        return leaf.detach().clone().requires_grad_()


@dataclass(frozen=True)
class Candidate:
    """One operator.

    Attributes:
        name: As in the tables.
        run: One call; what it returns is compared with the first candidate of ours.
        leaves: What is differentiated in a training step; empty for operators without a backward pass.
        role: Ours, a peer that must compute the same numbers, or another operator of the same shape.
        backend: Of morphlightning; empty for others.
        own_clock: ``run`` returns the seconds that it took itself.
    """

    name: str
    run: Callable[[], Any]
    leaves: tuple[Tensor, ...] = ()
    role: Literal["ours", "peer", "other"] = "peer"
    backend: str = ""
    own_clock: bool = False

    @contextmanager
    def context(self) -> Iterator[None]:
        """Where calls happen: entered once around many of them, since entering costs time.

        Backward passes stay on this thread, where the choice of a backend holds.
        """
        chosen = backends.use(self.backend) if self.backend else nullcontext()
        with chosen, torch.autograd.set_multithreading_enabled(False):
            yield

    def call(self, mode: Mode) -> Callable[[], Any]:
        """One forward pass, or one forward and backward pass with a dense message."""
        if mode == "forward":
            return self.run
        with self.context():
            message = torch.randn_like(self.run())

        def step() -> None:
            self.forget()
            self.run().backward(message)

        return step

    def forget(self) -> None:
        """Drop the gradients of the step before."""
        for leaf in self.leaves:
            leaf.grad = None


@dataclass(frozen=True)
class Limit:
    """What the machine can do at most, in the unit of a case: run in the same rounds, or a rate known without."""

    name: str
    work: float
    run: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        name: Shapes and sizes.
        reference: The candidate whose time is 1.
        candidates: Ours first.
        work: Pairs, pixels or elements of one forward pass.
        unit: What ``work`` counts.
        limits: The best of them is what a forward pass is held against.
        modes: What is timed.
    """

    name: str
    reference: str
    candidates: Sequence[Candidate]
    work: float = 0.0
    unit: str = "pair"
    limits: Sequence[Limit] = ()
    modes: Sequence[Mode] = ("forward", "step")

    def contenders(self, mode: Mode) -> list[Candidate]:
        """Candidates that can be run in a mode."""
        return [c for c in self.candidates if mode == "forward" or c.leaves]


@dataclass(frozen=True)
class Row:
    """One measured figure, with everything that a table needs."""

    group: str
    case: str
    mode: Mode
    operator: str
    role: str
    backend: str
    milliseconds: float
    first_quartile: float
    third_quartile: float
    samples: int
    reference: str
    times_reference: float
    times_ours: float
    rate: float | None
    unit: str
    limit_fraction: float | None
    memory_mib: float | None


def ours(
    setting: Setting, name: str, run: Callable[[], Any], *leaves: Tensor, every_backend: bool = False
) -> list[Candidate]:
    """An operator of morphlightning, by the backend that is used without a choice or by every one that works."""
    chosen = setting.backends() if every_backend else setting.backends()[:1]
    return [Candidate(f"{name} ({backend})", run, leaves, "ours", backend) for backend in chosen]


def compiled(setting: Setting, name: str, function: Callable[..., Tensor], *leaves: Tensor) -> list[Candidate]:
    """torch.compile of a function, where it was asked for; compiled at the first call."""
    if not setting.compile:
        return []
    fast = torch.compile(function, dynamic=False)
    return [Candidate(f"torch.compile {name}", lambda: fast(*leaves), leaves)]
