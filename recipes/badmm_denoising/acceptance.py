"""What the lifted methods are expected to do, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cost import STEP, Cost
from harness import Trace
from study import Row
from ways import LITERAL, RECOMMENDED, TRAIN, TUNED, VALIDATION

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
    """Those about errors and seconds, as far as what they are about was run.

    What is recommended is compared with all winners, by both numbers; what was tuned, with those that the same number
    chose, by that number.
    """
    literal, ours = winner(rows, LITERAL, VALIDATION), winner(rows, RECOMMENDED, VALIDATION)
    found: list[Condition] = []
    if literal:
        for row in of_families(rows, "SGD", "Adam"):
            found.append(smaller_mse(literal, row, last, last, 0.7))
    for other, iterations in (("Adam + wd", min(EARLY, last)), ("Adam centred", last), ("Adam + wd centred", last)):
        for row in of_families(rows, other):
            if ours:
                found += [smaller_mse(ours, row, iterations, last), larger_psnr(ours, row, iterations, last)]
        found += like_with_like(rows, other, iterations, last)
    adam = winner(rows, "Adam + wd", VALIDATION)
    for row in (ours, winner(rows, TUNED, VALIDATION)):
        if row and adam:
            text = f"{row.choice.name} until the PSNR that {adam.choice.name} ends with"
            found.append(Condition(text, "CPU seconds, ratio", each(row, adam, seconds_ratio), 1 / 3))
    return found


def like_with_like(rows: Sequence[Row], other: str, early: int, last: int) -> list[Condition]:
    """What was tuned by a number after ``early`` iterations is not worse by it than another family at the end."""
    found = []
    for criterion, compare in ((TRAIN, smaller_mse), (VALIDATION, larger_psnr)):
        ours, theirs = winner(rows, TUNED, criterion), winner(rows, other, criterion)
        if ours and theirs:
            found.append(compare(ours, theirs, early, last))
    return found


def winner(rows: Sequence[Row], family: str, criterion: str) -> Row | None:
    """The row of a family that a criterion chose."""
    return next((r for r in rows if r.choice.family == family and criterion in r.choice.criteria), None)


def of_families(rows: Sequence[Row], *names: str) -> Iterator[Row]:
    return (row for row in rows if row.choice.family in names)


def each(a: Row, b: Row, compare: Callable[[Trace, Trace], float]) -> tuple[float, ...]:
    """Compare two methods, seed by seed."""
    return tuple(compare(first, second) for first, second in zip(a.traces, b.traces, strict=True))


def smaller_mse(ours: Row, other: Row, early: int, last: int, limit: float = 1.0) -> Condition:
    """Ours after ``early`` iterations against the other one at the end."""
    return Condition(against(ours, other, early, last), MSE, each(ours, other, mse_ratio(early, last)), limit)


def larger_psnr(ours: Row, other: Row, early: int, last: int) -> Condition:
    """Ours after ``early`` iterations against the other one at the end."""
    measured = each(ours, other, psnr_above(early, last))
    return Condition(against(ours, other, early, last), "PSNR, dB above", measured, 0.0, at_most=False)


def against(ours: Row, other: Row, early: int, last: int) -> str:
    return f"{ours.choice.name} after {early} against {other.choice.name} after {last}"


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
