"""What a run shows and writes: each result when it is there, into one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import acceptance
import figures
import tables
from cost import costs
from images import Images, Samples
from rich.console import Console
from study import Row, Study

WIDTH = 240
EARLY = 20
"""Iterations of the first block of pictures."""


class Report:
    """Shows tables, and writes them with CSV files and figures.

    Args:
        folder: Where to.
        images: What is trained and measured on.
        data: Their name.
    """

    def __init__(self, folder: Path, images: Images, data: str) -> None:
        self.folder, self.images, self.data = folder, images, data
        self.console = Console(record=True)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.lines: dict[str, list[Mapping[str, Any]]] = {}

    def level(self, study: Study, noise: float, seeds: Sequence[int], parts: Sequence[str]) -> None:
        """All parts at a noise level."""
        before = len(self.lines.get("grid", []))
        chosen = study.grid(noise, lambda points: self.add("grid", points))
        if "grid" in parts:
            self.console.print(tables.grid(noise, self.lines["grid"][before:]), "")
        if "compare" in parts:
            rows = study.compare(noise, chosen, seeds)
            self.compare(rows, noise, seeds, study.iterations)
        if "pictures" in parts:
            rows = study.compare(noise, [c for c in chosen if c.family in figures.PICTURES], seeds[:1])
            self.pictures(rows, noise, seeds[0], study)

    def compare(self, rows: Sequence[Row], noise: float, seeds: Sequence[int], iterations: int) -> None:
        summary = tables.summary(rows, noise, iterations)
        conditions = acceptance.conditions(rows, iterations)
        self.add("summary", summary)
        self.add("acceptance", tables.acceptance_rows(conditions, noise))
        self.add("curves", tables.curves(rows, noise, seeds))
        self.console.print(tables.comparison(summary, noise, len(seeds)), "")
        self.console.print(tables.acceptance(conditions, f"Conditions at noise {noise:g}"), "")
        title = f"{self.data}, noise {noise:g}: mean and extent over {tables.counted(len(seeds))}"
        figures.curves(self.folder / f"curves_{noise:g}.png", rows, title)

    def pictures(self, rows: Sequence[Row], noise: float, seed: int, study: Study) -> None:
        held_out = Samples(*(part[study.shown] for part in self.images.task(noise, seed).held_out))
        blocks = sorted({min(EARLY, study.iterations), study.iterations})
        title = f"{self.data}, noise {noise:g}: held-out images; PSNR over all of them"
        side = round(self.images.pixels**0.5)
        figures.pictures(self.folder / f"pictures_{noise:g}.png", rows, held_out, side, blocks, title)

    def cost(self, turns: int, block: int) -> None:
        found = costs(self.images, turns, block)
        conditions = acceptance.of_costs(found)
        self.add("cost", tables.cost_rows(found))
        self.add("acceptance", tables.acceptance_rows(conditions, None))
        self.console.print(tables.cost(found), "")
        self.console.print(tables.acceptance(conditions, "Conditions on the cost of an iteration"), "")

    def add(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write a table again with more lines, so that an interrupted run leaves what it found."""
        self.lines.setdefault(name, []).extend(lines)
        tables.write(self.folder / f"{name}.csv", self.lines[name])

    def finish(self) -> None:
        """Say where everything lies, and keep what was shown."""
        self.console.print(f"results: {self.folder}", soft_wrap=True)
        self.console.save_text(str(self.folder / "report.txt"))
