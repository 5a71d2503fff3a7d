"""Numbers over seeds, for tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from shared.report import Report, spread
from training import Run

__all__ = ["Report", "mean", "spread", "summary"]


def mean(runs: Sequence[Run], iteration: int, what: str) -> float:
    """Over seeds."""
    return statistics.fmean(getattr(run.at(iteration), what) for run in runs)


def summary(
    found: Mapping[str, Sequence[Run]], at: Sequence[int], names: tuple[str, str] = ("MSE", "PSNR"), digits: int = 4
) -> list[dict[str, str]]:
    """A line for each method: losses and scores after some iterations over seeds, and the seconds of the last."""
    lines = []
    for name, runs in found.items():
        line = {"method": name, "chosen": runs[0].settings}
        for what, label, places in (("loss", names[0], digits), ("score", names[1], 2)):
            for k in at:
                values = [getattr(run.at(k), what) for run in runs]
                bad = any(run.diverged(k) for run in runs)
                line[f"{label} @{k}"] = "diverged" if bad else spread(values, places)
        lines.append(line | {"CPU s": f"{mean(runs, at[-1], 'seconds'):.1f}"})
    return lines
