"""What a run of the study shows and writes: progress, tables, figures, verdicts."""

from __future__ import annotations

import csv
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import plots
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

Row = Mapping[str, Any]
PACKAGES = ("morphlightning", "torch", "numpy")


class Spread(NamedTuple):
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return short(self.mean) + (f" ± {short(self.deviation)}" if self.deviation else "")


@dataclass(frozen=True)
class Setting:
    """What was asked for on the command line."""

    seeds: tuple[int, ...]
    quick: bool
    data_dir: Path | None

    @property
    def few(self) -> tuple[int, ...]:
        """The seeds of tables that need no more than three."""
        return self.seeds[:3]

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass
class Report:
    """Shows each result when it is there and writes it into one folder.

    ``findings.md`` is written as the run goes on, so that an interrupted run leaves what it found.
    """

    folder: Path
    quick: bool
    console: Console = field(default_factory=Console)
    verdicts: list[tuple[str, str, bool]] = field(default_factory=list)
    name: str = ""

    @classmethod
    def begin(cls, results: Path, quick: bool) -> Report:
        folder = results / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder.mkdir(parents=True)  # fails rather than mixing two runs
        report = cls(folder, quick)
        report.write("# Bouligand study\n\n" + "".join(f"- {name}: {value}\n" for name, value in facts().items()))
        return report

    @contextmanager
    def part(self, name: str, about: str | None) -> Iterator[None]:
        """Everything inside belongs to the part ``name``."""
        self.name = name
        title = name.replace("_", " ").capitalize()
        self.console.rule(f"[bold]{title}")
        paragraphs = [" ".join(paragraph.split()) for paragraph in (about or "").split("\n\n")]
        self.console.print("\n\n".join(paragraphs), "", highlight=False, markup=False)
        self.write(f"\n## {title}\n\n{about}")
        began = time.process_time()
        yield
        seconds = f"{time.process_time() - began:.0f} s of processor time"
        self.console.print(f"{title}: {seconds}", style="dim")
        self.write(f"\n{seconds}.\n")

    def track(self, items: Sequence[Any], description: str) -> Iterable[Any]:
        """The items, with a progress bar."""
        return track(items, description, console=self.console, transient=True)

    def runs(self, name: str, rows: Sequence[Row]) -> None:
        """Write every run, unrounded."""
        with open(self.folder / f"{self.name}_{name}.csv", "x", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Show a summary, and write it as Markdown."""
        columns = list(rows[0])
        lines = [[cell(row[column]) for column in columns] for row in rows]
        aligned = ["left" if isinstance(rows[0][column], str) else "right" for column in columns]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column, side in zip(columns, aligned, strict=True):
            table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
        for line in lines:
            table.add_row(*line)
        self.console.print(f"[italic]{title}", table, "", sep="\n", highlight=False)
        rules = [":--" if side == "left" else "--:" for side in aligned]
        text = "\n".join("| " + " | ".join(line) + " |" for line in [columns, rules, *lines])
        self.write(f"\n**{title}**\n\n{text}\n")

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        path = self.folder / f"{self.name}_{name}.png"
        plots.save(figure, path)
        self.write(f"\n![{name.replace('_', ' ')}]({path.name})\n")

    def verdict(self, expected: str, found: str, holds: bool) -> None:
        """Say what was expected, what was found, and whether that agrees."""
        self.verdicts.append((expected, found, holds))
        colour, word = ("green", "holds") if holds else ("red", "does not hold")
        self.console.print(f"[bold {colour}]{word}[/]  {expected}\n  [dim]found:[/] {found}\n", highlight=False)
        self.write(f"\n- **{word}**: {expected} Found: {found}\n")

    def finish(self) -> None:
        """Count the verdicts and say where everything lies."""
        held = sum(holds for *_, holds in self.verdicts)
        count = f"{held} of {len(self.verdicts)} expectations hold"
        if self.quick:
            count += "; the sizes of --quick are too small to judge by"
        self.console.print(count)
        self.write(f"\n{count}.\n")
        self.console.print(f"results: {self.folder}", soft_wrap=True)

    def write(self, text: str) -> None:
        with open(self.folder / "findings.md", "a", encoding="utf-8") as file:
            file.write(text)


def facts() -> dict[str, str]:
    """Where and with what the results were made."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, Python {platform.python_version()}",
    }


def summary(rows: Iterable[Row], by: Sequence[str], values: Sequence[str]) -> list[dict[str, Any]]:
    """One row a group, in the order in which groups came, with the spread of each value over the group."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key, strict=True)) | {value: spread([row[value] for row in group]) for value in values}
        for key, group in groups.items()
    ]


def spread(values: Sequence[float]) -> Spread:
    known = len(values) > 1 and all(map(math.isfinite, values))
    return Spread(statistics.fmean(values), statistics.stdev(values) if known else 0.0)


def pivot(rows: Iterable[Row], down: str, across: str, value: str) -> list[dict[str, Any]]:
    """A table of ``value`` with a line for each ``down`` and a column for each ``across``."""
    table: dict[Any, dict[str, Any]] = {}
    for row in rows:
        table.setdefault(row[down], {down: row[down]})[str(row[across])] = row[value]
    return list(table.values())


def cell(value: Any) -> str:
    return short(value) if isinstance(value, float) else str(value)


def short(number: float) -> str:
    """Three digits."""
    if not math.isfinite(number):
        return str(number)
    if number and (abs(number) < 1e-3 or abs(number) >= 1e4):
        return f"{number:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{number:.3g}"
