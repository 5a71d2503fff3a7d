"""Tables on the screen and CSV files."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acceptance import Condition
from cost import STEP, Cost
from grids import FACTS
from rich.table import Table
from study import Row
from ways import Way

MSE_AT, PSNR_AT = (20, 50, 100), (20, 50)
TARGET = "Adam + wd"
"""The family whose last PSNR the others shall reach; with the settings of the best validation PSNR."""


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write lines, of which one may lack columns that another one has."""
    names = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(rows)


def columns(title: str, *names: str) -> Table:
    """A table whose names with a colon are of numbers; what follows the colon is the name."""
    table = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in names:
        table.add_column(name.lstrip(":"), justify="right" if name.startswith(":") else "left")
    return table


def grid(noise: float, points: Iterable[Mapping[str, Any]]) -> Table:
    """All points of all grids at a noise level."""
    names = "method", "settings", ":1000 train MSE", ":validation PSNR", ":CPU s", "best", "at the edge"
    table = columns(f"Grids at noise {noise:g}: all points, on the training images of seed 0", *names)
    before = None
    for point in points:
        way = settings(point)
        numbers = thousandths(point["train_mse"]), f"{point['val_psnr']:.2f}", f"{point['seconds']:.1f}"
        first = point["family"] if point["family"] != before else ""
        before = point["family"]
        style = "bold" if point["best"] else None
        table.add_row(first, str(way), *numbers, point["best"], point["edge"], style=style)
    return table


def settings(point: Mapping[str, Any]) -> Way:
    return Way.of(point["method"], **{name: value for name, value in point.items() if name not in FACTS})


def summary(rows: Sequence[Row], noise: float, last: int) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds of each method, unrounded."""
    targets = target(rows)
    found = []
    for row in rows:
        line: dict[str, Any] = {"noise": noise, "method": row.choice.name, "settings": str(row.choice.way)}
        values = {f"train_mse_{k}": [t.at(k).train_mse for t in row.traces] for k in early(MSE_AT, last)}
        values |= {f"psnr_{k}": [t.at(k).psnr for t in row.traces] for k in early(PSNR_AT, last)}
        values["seconds"] = [t.last.seconds for t in row.traces]
        values["ms_per_iteration"] = [
            1000 * (t.last.seconds - t.points[0].seconds) / max(1, t.last.iteration) for t in row.traces
        ]
        reached = [t.reaching(goal) for t, goal in zip(row.traces, targets, strict=True)]
        values["iterations_to_target"] = [point.iteration if point else math.inf for point in reached]
        values["seconds_to_target"] = [point.seconds if point else math.inf for point in reached]
        for name, numbers in values.items():
            line |= {name: mean(numbers), f"{name}_sd": deviation(numbers)}
        found.append(line | {"seeds_at_target": sum(point is not None for point in reached), "seeds": len(reached)})
    return found


def target(rows: Sequence[Row]) -> list[float]:
    """The PSNR of each seed that the others shall reach; not to be reached where its family was not run."""
    family = [row for row in rows if row.choice.family == TARGET]
    if not family:
        return [math.inf] * len(rows[0].traces)
    return [trace.last.psnr for trace in family[-1].traces]  # the criteria are in order: validation last


def early(iterations: Sequence[int], last: int) -> list[int]:
    """Those before the last one, and it."""
    return [*(k for k in iterations if k < last), last]


def comparison(lines: Sequence[Mapping[str, Any]], noise: float, seeds: int) -> Table:
    """The table of methods."""
    errors = [name for name in lines[0] if name.startswith(("train_mse_", "psnr_")) and not name.endswith("_sd")]
    titles = [f":{'MSE' if name[0] == 't' else 'dB'} @{name.rsplit('_', 1)[1]}" for name in errors]
    title = f"Noise {noise:g}, {counted(seeds)}: 1000 times the training MSE, and held-out PSNR of the forward pass"
    rest = ":CPU s", ":ms/iteration", ":iterations to *", ":s to *"
    table = columns(title, "method", "settings", *titles, *rest)
    table.caption = f"* the PSNR with which {TARGET} ends, its settings chosen by validation"
    for line in lines:
        cells = [spread(line, name, *((1000, 2) if name.startswith("train") else (1, 2))) for name in errors]
        cells += [spread(line, "seconds", 1, 1), spread(line, "ms_per_iteration", 1, 1)]
        if line["seeds_at_target"] == line["seeds"]:
            cells += [spread(line, "iterations_to_target", 1, 0), spread(line, "seconds_to_target", 1, 2)]
        else:
            cells += [f"in {line['seeds_at_target']} of {line['seeds']}", "-"]
        table.add_row(line["method"], line["settings"], *cells)
    return table


def acceptance(found: Sequence[Condition], title: str) -> Table:
    """What was expected, what was measured, and whether that agrees, for each seed."""
    table = columns(title, "expected", "number", ":measured", ":limit", ":seeds", "holds")
    for condition in found:
        numbers = plus_minus(mean(condition.measured), deviation(condition.measured), 3, len(condition.measured))
        limit = f"{'≤' if condition.at_most else '≥'} {condition.limit:.3g}"
        word = "[green]yes" if condition.holds else "[red]no"
        seeds = f"{condition.held}/{len(condition.measured)}"
        table.add_row(condition.text, condition.unit, numbers, limit, seeds, word)
    return table


def acceptance_rows(found: Sequence[Condition], noise: float | None) -> list[dict[str, Any]]:
    return [
        {
            "noise": "" if noise is None else noise,
            "expected": condition.text,
            "number": condition.unit,
            "mean": mean(condition.measured),
            "sd": deviation(condition.measured),
            "limit": f"{'<=' if condition.at_most else '>='} {condition.limit:.6g}",
            "seeds_held": condition.held,
            "seeds": len(condition.measured),
            "holds": "yes" if condition.holds else "no",
        }
        for condition in found
    ]


def cost(found: Mapping[str, Cost]) -> Table:
    """Cost of an iteration of each method."""
    table = columns("CPU time of an iteration", "method", ":median ms", ":quartiles", f":times {STEP}")
    for name, one in found.items():
        low, high = one.quartiles
        quartiles = f"{1000 * low:.2f} - {1000 * high:.2f}"
        table.add_row(name, f"{1000 * one.median:.2f}", quartiles, f"{one.times(found[STEP]):.2f}")
    return table


def cost_rows(found: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """A line a block."""
    return [
        {"method": name, "turn": turn, "seconds_per_iteration": seconds}
        for name, one in found.items()
        for turn, seconds in enumerate(one.blocks)
    ]


def curves(rows: Sequence[Row], noise: float, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A line a point of a run."""
    return [
        {"noise": noise, "method": row.choice.name, "settings": str(row.choice.way), "seed": seed} | vars(point)
        for row in rows
        for seed, trace in zip(seeds, row.traces, strict=True)
        for point in trace.points
    ]


def mean(numbers: Sequence[float]) -> float:
    return statistics.fmean(numbers)


def deviation(numbers: Sequence[float]) -> float:
    known = len(numbers) > 1 and all(map(math.isfinite, numbers))
    return statistics.stdev(numbers) if known else 0.0


def spread(line: Mapping[str, Any], name: str, factor: float, digits: int) -> str:
    """Mean and deviation of a number of a line, where there are several seeds."""
    return plus_minus(factor * line[name], factor * line[f"{name}_sd"], digits, line["seeds"])


def plus_minus(mean: float, deviation: float, digits: int, seeds: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if seeds > 1 else "")


def counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def thousandths(mse: float) -> str:
    return f"{1000 * mse:.2f}" if math.isfinite(mse) else "diverged"
