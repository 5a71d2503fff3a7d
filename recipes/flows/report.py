"""What a run shows and writes: progress, tables, sentences, figures."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plots
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

WIDTH = 160
PACKAGES = ("morphlightning", "torch", "lightning", "numpy")


@dataclass
class Report:
    """Shows each result when it is there and writes it into one folder."""

    folder: Path
    console: Console = field(default_factory=Console)
    name: str = ""

    @classmethod
    def begin(cls, results: Path, threads: int) -> Report:
        folder = results / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder.mkdir(parents=True)  # fails rather than mixing two runs
        (folder / "facts.txt").write_text("".join(f"{name}: {value}\n" for name, value in facts(threads).items()))
        report = cls(folder)
        if not report.console.is_terminal:
            report.console.width = WIDTH
        return report

    @contextmanager
    def part(self, name: str, about: str | None) -> Iterator[None]:
        """Everything inside belongs to the part ``name``."""
        self.name = name
        self.console.rule(f"[bold]{name}")
        self.console.print(" ".join((about or "").split()), "", highlight=False, markup=False)
        self.write(f"\n## {name}\n\n{about}")
        began = time.process_time()
        yield
        seconds = f"{time.process_time() - began:.0f} s of processor time"
        self.console.print(f"{name}: {seconds}\n", style="dim")
        self.write(f"\n{seconds}.\n")

    def note(self, sentence: str) -> None:
        """Progress, shown and not written."""
        self.console.print(sentence, style="dim", highlight=False, markup=False)

    def runs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows, unrounded."""
        with open(self.folder / f"{self.name}_runs.csv", "x", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
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
        plots.save(figure, path)
        self.write(f"\n![{name.replace('_', ' ')}]({path.name})\n")

    def finish(self, quick: bool) -> None:
        if quick:
            self.console.print("the sizes of the preset quick are too small to judge by")
        self.console.print(f"results: {self.folder}", soft_wrap=True)

    def write(self, text: str) -> None:
        with open(self.folder / "findings.md", "a", encoding="utf-8") as file:
            file.write(text)


def facts(threads: int) -> dict[str, str]:
    """Where and with what the results were made."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "threads": str(threads),
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
