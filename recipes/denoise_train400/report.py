"""Tables on the screen and in files."""

from __future__ import annotations

import csv
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import figures
import lightning as L
from evaluation import LEVELS, SMALL, Picture, Score, mean
from rich.console import Console
from rich.table import Table

from morphlightning.models import RidgeRegularizerDenoiser


def facts(folder: Path, threads: int) -> None:
    """Write how the run was made."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    known = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip(),
        "machine": platform.platform(),
        "threads": threads,
        **{name: version(name) for name in ("morphlightning", "torch", "lightning")},
    }
    with (folder / "facts.txt").open("a") as file:  # a resumed run adds its own
        file.write("".join(f"{name}: {value}\n" for name, value in known.items()) + "\n")


@dataclass
class Results:
    """What is known so far, shown as it comes and written at the end."""

    console: Console
    folder: Path
    models: dict[str, L.LightningModule] = field(default_factory=dict)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)

    def trained(self, name: str, about: str, model: L.LightningModule, curve: list[dict[str, float]]) -> None:
        """Keep a model and its learning curve."""
        self.models[name], self.curves[name] = model, curve
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        seconds = curve[-1]["seconds"]
        self.about[name] = {"what": about, "parameters": f"{count:,}", "training, CPU s": f"{seconds:.0f}"}
        self.console.print(f"{count:,} parameters, {seconds:.0f} s of processor time")

    def scored(self, found: tuple[list[Score], Picture]) -> None:
        """Keep scores and the picture."""
        scores, picture = found
        self.scores += scores
        self.pictures[scores[0].method] = picture
        levels = ", ".join(f"{mean(scores, level, SMALL):.2f} at {level}" for level in LEVELS)
        self.console.print(f"seven images: {levels}")

    def finish(self) -> None:
        """Write and show all."""
        with (self.folder / "scores.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, asdict(self.scores[0]).keys())
            writer.writeheader()
            writer.writerows(asdict(score) for score in self.scores)
        self.table()
        figures.pictures(self.folder / "pictures.png", self.pictures)
        ridges = {name: m for name, m in self.models.items() if isinstance(m, RidgeRegularizerDenoiser)}
        if ridges:
            figures.learned(self.folder / "learned.png", ridges)
        if self.curves:
            figures.curves(self.folder / "curves.png", self.curves)
        self.console.print(f"results: {self.folder}")

    def table(self) -> None:
        """Mean PSNR of each method over the seven small images, and over all twelve."""
        rows = []
        for name in self.pictures:
            own = [score for score in self.scores if score.method == name]
            row = {"method": name} | self.about.get(name, {"what": "", "parameters": "", "training, CPU s": ""})
            row |= {f"seven, {level}": f"{mean(own, level, SMALL):.2f}" for level in LEVELS}
            row |= {f"twelve, {level}": f"{mean(own, level):.2f}" for level in LEVELS}
            seconds = [score.seconds for score in own]
            rows.append(row | {"CPU s an image": f"{sum(seconds) / len(seconds):.2f}"})
        table = Table(title="PSNR on Set12, dB", box=None, header_style="bold")
        for column in rows[0]:
            table.add_column(column, justify="left" if column in ("method", "what") else "right")
        for row in rows:
            table.add_row(*row.values())
        self.console.print(table)
        lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
        (self.folder / "table.md").write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))
