"""Tables on the screen, CSV files and the figure."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table
from training import Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = ("#1f6fb4", "#e08a1e")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "x", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_epochs(path: Path, runs: Sequence[Run]) -> None:
    """A line an epoch."""
    write(path, [asdict(epoch) for run in runs for epoch in run.epochs])


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """A line a run."""
    write(
        path,
        [
            {
                "way": run.way.name,
                "seed": run.seed,
                "lr": run.way.lr,
                "spread": run.way.shape.spread,
                "val_accuracy": run.val_accuracy,
                "test_accuracy": run.test_accuracy,
                "seconds": sum(epoch.seconds for epoch in run.epochs),
            }
            for run in runs
        ],
    )


def table(title: str, runs: Sequence[Run]) -> Table:
    """Accuracies of each way: mean and standard deviation over seeds, in percent."""
    found = Table(title=title, box=None, header_style="bold")
    found.add_column("way")
    for column in ("lr", "spread", "validation %", "test %", "CPU s a run"):
        found.add_column(column, justify="right")
    for _, group in groupby(runs, key=lambda run: run.way):
        some = list(group)
        way, seconds = some[0].way, statistics.mean(sum(e.seconds for e in run.epochs) for run in some)
        parts = [percent([run.val_accuracy for run in some]), percent([run.test_accuracy for run in some])]
        found.add_row(way.name, f"{way.lr:g}", f"{way.shape.spread:g}", *parts, f"{seconds:.0f}")
    return found


def percent(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(shares):.2f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.2f}"


def verdict(ours: Sequence[Run], plain: Sequence[Run]) -> str:
    """How far ours is above, and the pooled deviation of the seeds."""
    a, b = ([100 * run.test_accuracy for run in runs] for runs in (ours, plain))
    above = statistics.mean(a) - statistics.mean(b)
    if len(a) < 2:
        return f"ours is {above:+.2f} points above; more than one seed would give a deviation"
    pooled = math.sqrt((statistics.variance(a) + statistics.variance(b)) / 2)
    return f"ours is {above:+.2f} points above; pooled standard deviation of the seeds {pooled:.2f} points"


def draw(path: Path, ours: Sequence[Run], plain: Sequence[Run]) -> None:
    """Accuracy on the validation images against the epoch, a line a seed."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for runs, colour in zip((ours, plain), COLOURS, strict=True):
        for number, run in enumerate(runs):
            label = run.way.name if number == 0 else None
            epochs = [epoch.epoch for epoch in run.epochs]
            axis.plot(epochs, [100 * epoch.val_accuracy for epoch in run.epochs], "o-", ms=3, color=colour, label=label)
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation accuracy with maxima, %")
    axis.set_title("MNIST, maxima and additions of constants alone", fontsize=10)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
