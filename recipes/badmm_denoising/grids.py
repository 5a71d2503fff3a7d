"""Tunes a family: a grid that grows until the best of it has neighbours on all sides."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ways import TRAIN, Family, Value, Way


@dataclass(frozen=True)
class Score:
    """What a way came to after the last iteration, on the images that settings are chosen by."""

    train_mse: float
    val_psnr: float
    seconds: float

    def __str__(self) -> str:
        return f"train MSE {self.train_mse:.5f}, validation {self.val_psnr:.2f} dB"


@dataclass(frozen=True)
class Choice:
    """A winner of a family.

    Attributes:
        family: Whose.
        way: Its settings.
        criteria: By which it is the best.
        edges: Settings for which a better value may lie outside of what was tried.
        alone: No other criterion chose another way.
    """

    family: str
    way: Way
    criteria: tuple[str, ...]
    edges: tuple[str, ...]
    alone: bool

    @property
    def name(self) -> str:
        """The family's, and the criterion where the other one chose another way."""
        return self.family if self.alone else f"{self.family} (best {self.criteria[0]})"

    def __str__(self) -> str:
        return f"{self.name}, {self.way}"


def search(family: Family, score: Callable[[Way], Score]) -> dict[Way, Score]:
    """Score the start of a family's grid, then the neighbours of the winners until all of them are known."""
    tried = {way: score(way) for way in family.start()}
    while True:
        winners = [best(tried, criterion) for criterion in family.criteria]
        around = (way for winner in winners for axis in family.axes for way in family.neighbours(winner, axis))
        fresh = dict.fromkeys(way for way in around if way not in tried)
        if not fresh:
            return tried
        tried |= {way: score(way) for way in fresh}


def best(tried: Mapping[Way, Score], criterion: str) -> Way:
    if criterion == TRAIN:
        return min(tried, key=lambda way: tried[way].train_mse)
    return max(tried, key=lambda way: tried[way].val_psnr)


def choose(family: Family, tried: Mapping[Way, Score]) -> list[Choice]:
    """The winners, each once."""
    winners: dict[Way, tuple[str, ...]] = {}
    for criterion in family.criteria:
        way = best(tried, criterion)
        winners[way] = (*winners.get(way, ()), criterion)
    alone = len(winners) == 1
    return [Choice(family.name, way, by, edges(family, way, tried), alone) for way, by in winners.items()]


def edges(family: Family, way: Way, tried: Iterable[Way]) -> tuple[str, ...]:
    """Settings whose neighbouring values were not all tried with the others as they are, or that have none."""
    known = set(tried)
    return tuple(
        axis.name
        for axis in family.axes
        if axis.at_end(way[axis.name]) or not known.issuperset(family.neighbours(way, axis))
    )


def rows(noise: float, family: Family, tried: Mapping[Way, Score], chosen: Iterable[Choice]) -> list[dict[str, Any]]:
    """A line a point, in the order of the settings."""
    choices = {choice.way: choice for choice in chosen}
    found = []
    for way in sorted(tried, key=lambda way: way.settings):
        choice = choices.get(way)
        found.append(
            {"noise": noise, "family": family.name, "method": way.method, "centred": int(way.centred)}
            | dict(way.settings)
            | vars(tried[way])
            | {"best": " and ".join(choice.criteria) if choice else ""}
            | {"edge": (" ".join(choice.edges) or "no") if choice else ""}
        )
    return found


FACTS = (
    "noise",
    "family",
    "method",
    "centred",
    "data",
    "iterations",
    "train_mse",
    "val_psnr",
    "seconds",
    "best",
    "edge",
)


def read(path: Path, data: str, iterations: int) -> dict[tuple[float, Way], Score]:
    """The points of a table that an earlier run wrote, on the same images and with as many iterations."""
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["data"] == data and int(row["iterations"]) == iterations:
                settings = {name: parse(text) for name, text in row.items() if name not in FACTS and text}
                way = Way.of(row["method"], row["centred"] == "1", **settings)
                found[float(row["noise"]), way] = Score(*(float(row[name]) for name in Score.__annotations__))
    return found


def parse(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text
