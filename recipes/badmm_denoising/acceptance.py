"""What the lifted methods are expected to do, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cost import STEP, Cost
from harness import Trace
from study import Row
from ways import LITERAL, RECOMMENDED, TRAIN, VALIDATION

EARLY = 50
MSE = "train MSE, ratio"


@dataclass(frozen=True)
class Condition:
    """A number of each seed that shall be at most, or at least, a limit.

    Attributes:
        text: What is expected.
        unit: What the numbers are.
        measured: The numbers.
        limit: Of each of them.
        at_most: Else at least.
    """

    text: str
    unit: str
    measured: tuple[float, ...]
    limit: float
    at_most: bool = True

    @property
    def held(self) -> int:
        """In how many seeds it holds."""
        return sum(value <= self.limit if self.at_most else value >= self.limit for value in self.measured)

    @property
    def holds(self) -> bool:
        return self.held == len(self.measured)


def conditions(rows: Sequence[Row], last: int) -> list[Condition]:
    """Those about errors and seconds, as far as what they are about was run."""
    literal, ours = winner(rows, LITERAL, VALIDATION), winner(rows, RECOMMENDED, VALIDATION)
    fitted = winner(rows, RECOMMENDED, TRAIN)
    found: list[Condition] = []
    if literal:
        for row in of_families(rows, "SGD", "Adam"):
            text = f"{LITERAL} after {last} iterations against {row.choice.name}"
            found.append(Condition(text, MSE, each(literal, row, mse_ratio(last, last)), 0.7))
    if ours:
        for row in of_families(rows, "Adam + wd"):
            found += not_worse(ours, row, min(EARLY, last), last)
        for row in of_families(rows, "Adam + wd"):
            if VALIDATION in row.choice.criteria:
                text = f"{ours.choice.name} until the PSNR that {row.choice.name} ends with"
                found.append(Condition(text, "CPU seconds, ratio", each(ours, row, seconds_ratio), 1 / 3))
        for row in of_families(rows, "Adam centred", "Adam + wd centred"):
            found += not_worse(ours, row, last, last)
            if fitted and fitted is not ours and TRAIN in row.choice.criteria:
                text = f"{fitted.choice.name} after {last} iterations against {row.choice.name}"
                found.append(Condition(text, MSE, each(fitted, row, mse_ratio(last, last)), 1.0))
    return found


def winner(rows: Sequence[Row], family: str, criterion: str) -> Row | None:
    """The row of a family that a criterion chose."""
    return next((r for r in rows if r.choice.family == family and criterion in r.choice.criteria), None)


def of_families(rows: Sequence[Row], *names: str) -> Iterator[Row]:
    return (row for row in rows if row.choice.family in names)


def each(a: Row, b: Row, compare: Callable[[Trace, Trace], float]) -> tuple[float, ...]:
    """Compare two methods, seed by seed."""
    return tuple(compare(first, second) for first, second in zip(a.traces, b.traces, strict=True))


def not_worse(ours: Row, other: Row, early: int, last: int) -> list[Condition]:
    """Ours after ``early`` iterations has no larger error and no lower PSNR than the other one at the end."""
    text = f"{ours.choice.name} after {early} iterations against {other.choice.name} after {last}"
    return [
        Condition(text, MSE, each(ours, other, mse_ratio(early, last)), 1.0),
        Condition(text, "PSNR, dB above", each(ours, other, psnr_above(early, last)), 0.0, at_most=False),
    ]


def mse_ratio(first: int, second: int) -> Callable[[Trace, Trace], float]:
    return lambda a, b: a.at(first).train_mse / b.at(second).train_mse


def psnr_above(first: int, second: int) -> Callable[[Trace, Trace], float]:
    return lambda a, b: a.at(first).psnr - b.at(second).psnr


def seconds_ratio(ours: Trace, other: Trace) -> float:
    """Of the times until the last PSNR of the other one; its own time is until it first has it."""
    target = other.last.psnr
    mine, theirs = ours.reaching(target), other.reaching(target)
    return mine.seconds / theirs.seconds if mine and theirs else math.inf


def of_costs(found: Mapping[str, Cost]) -> list[Condition]:
    """Those about the cost of an iteration."""
    return [
        Condition(f"an iteration of {name} against a step of {STEP}", "CPU time, ratio", (ratio,), limit)
        for name, limit in (("BADMM", 1.3), ("lifted MM", 1.7))
        if name in found
        for ratio in [found[name].times(found[STEP])]
    ]
