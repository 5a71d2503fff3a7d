"""What a run shows and writes: tables, pictures, residuals, sentences."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import plots
from images import Images
from rich.console import Console
from rich.table import Table
from study import Outcome

Line = Mapping[str, str]


@dataclass
class Report:
    """Shows each result when it is there and writes it into one folder."""

    folder: Path
    console: Console = field(default_factory=Console)
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def begin(cls, results: Path, threads: int) -> Report:
        folder = results / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder.mkdir(parents=True)  # fails rather than mixing two runs
        (folder / "facts.txt").write_text("".join(f"{name}: {value}\n" for name, value in facts(threads).items()))
        report = cls(folder)
        if not report.console.is_terminal:
            report.console.width = 160
        return report

    def problem(self, about: str, outcomes: Sequence[Outcome], images: Images) -> None:
        """A table and pictures of one problem."""
        self.outcomes += outcomes
        name = outcomes[0].problem
        self.table(f"{name}: {about}", [line(outcome) for outcome in outcomes])
        plots.pictures(self.folder / f"{name.replace(' ', '_')}.png", outcomes, images.test)

    def finish(self, seconds: float) -> None:
        """All problems side by side, guarantees, and every value unrounded."""
        problems = list(dict.fromkeys(outcome.problem for outcome in self.outcomes))
        methods = list(dict.fromkeys(outcome.method for outcome in self.outcomes))
        found = {(o.problem, o.method): f"{o.mean('psnr'):.2f}" for o in self.outcomes}
        summary = [{"PSNR": m} | {p: found.get((p, m), "") for p in problems} for m in methods]
        self.table("all problems", summary)
        for outcome in self.outcomes:
            if outcome.guarantee and outcome.problem == problems[0]:
                self.say(f"{outcome.method}: {outcome.guarantee}")
        plots.residuals(self.folder / "residuals.png", [o for o in self.outcomes if o.problem == problems[0]])
        with open(self.folder / "runs.csv", "x", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["problem", "method", "settings", "image", "psnr", "ssim", "iterations", "seconds"])
            for o in self.outcomes:
                rows = zip(o.psnr, o.ssim, o.iterations, strict=True)
                writer.writerows([o.problem, o.method, o.chosen, i, *row, o.seconds] for i, row in enumerate(rows))
        self.say(f"{seconds:.0f} s of processor time")
        self.console.print(f"results: {self.folder}", soft_wrap=True)

    def table(self, title: str, rows: Sequence[Line]) -> None:
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
        """A sentence."""
        self.console.print(f"{sentence}\n", highlight=False, markup=False)
        self.write(f"\n{sentence}\n")

    def write(self, text: str) -> None:
        with open(self.folder / "findings.md", "a", encoding="utf-8") as file:
            file.write(text)


def line(outcome: Outcome) -> dict[str, str]:
    """A row of a problem's table."""
    iterations = statistics.fmean(outcome.iterations)
    return {
        "method": outcome.method,
        "PSNR": f"{outcome.mean('psnr'):.2f}",
        "SSIM": f"{outcome.mean('ssim'):.3f}",
        "iterations": f"{iterations:.0f}" if iterations else "",
        "CPU s an image": f"{outcome.seconds:.2f}",
        "settings": outcome.chosen,
    }


def facts(threads: int) -> dict[str, str]:
    """Where and with what the results were made."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("morphlightning", "torch", "numpy")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "threads": str(threads),
    }
