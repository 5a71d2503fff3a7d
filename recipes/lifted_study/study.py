"""What the parts share: the setting of a study, choosing settings on validation samples, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from problems import Images, Part, Problem
from report import Report
from torch import nn
from training import Point, Run, Way, measure

Settings = Mapping[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What was asked for on the command line."""

    images: Images
    seeds: tuple[int, ...]
    quick: bool

    def size(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass(frozen=True)
class Candidate:
    """A method to compare.

    Attributes:
        name: What it is called.
        way: Builds it from its settings.
        fixed: Settings that are not chosen.
        axes: Settings that are chosen on the validation samples, and their values in ascending order.
        start: Where choosing begins.
        centred: It trains on centred samples.
        by_loss: Report also the settings that came out with the lowest training loss of all that were tried.
    """

    name: str
    way: Callable[..., Way]
    fixed: Settings = field(default_factory=dict)
    axes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    start: Settings = field(default_factory=dict)
    centred: bool = False
    by_loss: bool = False

    def build(self, chosen: Settings) -> Way:
        return self.way(**self.fixed, **chosen)


@dataclass(frozen=True)
class Contest:
    """Networks that learn something, by seed; ``problem`` takes a seed and whether samples are centred."""

    network: Callable[[int], nn.Sequential]
    problem: Callable[[int, bool], Problem]
    seeds: Sequence[int]
    at: Sequence[int]
    chosen_at: int

    def hold(self, candidates: Sequence[Candidate], report: Report) -> dict[str, list[Run]]:
        """Choose settings with the first seed, and run what was chosen with all seeds."""
        found: dict[str, list[Run]] = {}
        grid = []
        for candidate in report.track(candidates, report.name):
            chosen, tried = self.choose(candidate)
            grid += [{"method": candidate.name, "settings": text(s)} | vars(point) for s, point in tried]
            found[candidate.name] = self.runs(candidate, chosen, candidate.name)
            if candidate.by_loss:
                lowest, _ = max(tried, key=lambda one: _worst(-one[1].loss))
                if lowest != chosen:
                    name = f"{candidate.name}, by training loss"
                    found[name] = self.runs(candidate, lowest, name)
        if grid:
            report.runs(grid, "chosen")
        report.runs([row for runs in found.values() for run in runs for row in run.rows()], "runs")
        return found

    def choose(self, candidate: Candidate) -> tuple[Settings, list[tuple[Settings, Point]]]:
        """By the score on the validation samples; and all that was tried."""
        if not candidate.axes:
            return {}, []

        def point(settings: Settings) -> Point:
            return self._measure(candidate, settings, self.seeds[0], [self.chosen_at], "validation")[-1]

        return climb(candidate.axes, candidate.start, point)

    def runs(self, candidate: Candidate, chosen: Settings, name: str) -> list[Run]:
        about = text(chosen, candidate.axes)
        return [Run(name, about, seed, self._measure(candidate, chosen, seed, self.at, "test")) for seed in self.seeds]

    def _measure(
        self, candidate: Candidate, settings: Settings, seed: int, at: Sequence[int], part: Part
    ) -> list[Point]:
        problem = self.problem(seed, candidate.centred)
        return measure(candidate.build(settings), self.network(seed), problem, at, seed, part)


def climb(
    axes: Mapping[str, Sequence[float]], start: Settings, point: Callable[[Settings], Point]
) -> tuple[Settings, list[tuple[Settings, Point]]]:
    """From the start to the best neighbour on any axis, until none has a higher score; and all that was tried."""
    tried: dict[tuple[float, ...], Point] = {}

    def named(values: tuple[float, ...]) -> Settings:
        return dict(zip(axes, values, strict=True))

    best = tuple(start[name] for name in axes)
    while True:
        for candidate in [best, *_neighbours(best, list(axes.values()))]:
            if candidate not in tried:
                tried[candidate] = point(named(candidate))
        top = max(tried, key=lambda settings: _worst(tried[settings].score))
        if _worst(tried[top].score) <= _worst(tried[best].score):
            return named(best), [(named(settings), found) for settings, found in tried.items()]
        best = top


def _neighbours(here: tuple[float, ...], axes: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    found = []
    for i, values in enumerate(axes):
        at = list(values).index(here[i])
        found += [(*here[:i], values[j], *here[i + 1 :]) for j in (at - 1, at + 1) if 0 <= j < len(values)]
    return found


def _worst(score: float) -> float:
    """NaN below everything."""
    return -math.inf if math.isnan(score) else score


def text(settings: Settings, axes: Mapping[str, Sequence[float]] | None = None) -> str:
    """Settings in words; * marks the first and the last value that might have been chosen, unless it is 0."""

    def mark(name: str, value: float) -> str:
        return "*" if axes and value and value in (axes[name][0], axes[name][-1]) else ""

    names = {"weight_decay": "wd"}
    return ", ".join(f"{names.get(name, name)} {value:g}{mark(name, value)}" for name, value in settings.items())
