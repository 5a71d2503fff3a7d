"""What a run of a recipe shows and writes: tables, sentences, figures."""

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
from typing import Any, TypeVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

T = TypeVar("T")


@dataclass
class Report:
    """Shows each result when it is there and writes it into one folder."""

    folder: Path
    console: Console = field(default_factory=Console)
    name: str = ""

    @classmethod
    def begin(cls, results: Path, threads: int | None = None) -> Report:
        folder = results / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder.mkdir(parents=True)  # fails rather than mixing two runs
        (folder / "facts.txt").write_text("".join(f"{name}: {value}\n" for name, value in facts(threads).items()))
        report = cls(folder)
        if not report.console.is_terminal:
            report.console.width = 160
        return report

    @contextmanager
    def part(self, name: str, about: str | None) -> Iterator[None]:
        """Everything inside belongs to the part ``name``."""
        self.name = name
        self.console.rule(f"[bold]{name}")
        self.console.print(" ".join((about or "").split()), "", highlight=False, markup=False)
        self.write(f"\n## {name}\n\n{about or ''}")
        began = time.process_time()
        yield
        seconds = f"{name}: {time.process_time() - began:.0f} s of processor time."
        self.console.print(f"{seconds}\n", style="dim")
        self.write(f"\n{seconds}\n")

    def track(self, items: Sequence[T], description: str = "") -> Iterable[T]:
        """The items, with a progress bar."""
        hidden = not self.console.is_terminal
        return track(items, description or self.name, console=self.console, transient=True, disable=hidden)

    def note(self, sentence: str) -> None:
        """Progress, shown and not written."""
        self.console.print(sentence, style="dim", highlight=False, markup=False)

    def runs(self, rows: Sequence[Mapping[str, Any]], name: str = "") -> None:
        """Write all rows, unrounded."""
        file_name = f"{self.name}_{name}.csv" if name else f"{self.name}.csv"
        with open(self.folder / file_name, "x", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)

    def table(self, title: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Show a table, and write it as Markdown."""
        columns = list(rows[0])
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        self.console.print(f"[italic]{title}", table, "", sep="\n", highlight=False)
        lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *(row.values() for row in rows)]
        self.write(f"\n**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")

    def say(self, sentence: str) -> None:
        """What came out."""
        self.console.print(f"{sentence}\n", highlight=False, markup=False)
        self.write(f"\n{sentence}\n")

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        path = self.folder / f"{self.name}_{name}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        self.write(f"\n![{name.replace('_', ' ')}]({path.name})\n")

    def finish(self, remark: str = "") -> None:
        """Say where everything is."""
        if remark:
            self.console.print(remark)
        self.console.print(f"results: {self.folder}", soft_wrap=True)

    def write(self, text: str) -> None:
        with open(self.folder / "findings.md", "a", encoding="utf-8") as file:
            file.write(text)


def facts(threads: int | None = None) -> dict[str, str]:
    """Where and with what the results were made."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("morphlightning", "torch", "lightning")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        **({} if threads is None else {"threads": str(threads)}),
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation; "diverged" where a value is none."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
