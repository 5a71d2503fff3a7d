"""BADMM with one setting changed at a time, on one hidden layer that denoises 1000 images.

Unchanged: order ZXWM, linearized z, proximal x, exact w, mu 3, rho 1, tau_x 1.9, tau_z, tau_m and tau_w 1, ridge 100
(first layer) and 1. Diverged: the training MSE is not finite, or above that of the network before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plots
from matplotlib.figure import Figure
from report import Report
from study import Setting
from training import Point, Run, badmm, measure, network

from morphlightning.errors import ConfigError

BASE: dict[str, Any] = {
    "order": "ZXWM", "z_step": "linearized", "x_step": "prox", "w_step": "exact", "tau_x": 1.9, "tau_z": 1.0,
    "tau_m": 1.0, "tau_w": 1.0, "rho": 1.0, "mu": 3.0, "ridge": 100.0, "ridge_2": 1.0,
}  # fmt: skip
"""BADMM's own settings, and a ridge that validation chose."""
ORDERS = ("ZXWM", "XZWM", "ZWXM", "WXZM", "XWZM", "WZXM", "xWM")
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "order": {order: {"order": order} for order in ORDERS},
    "z_step": {step: {"z_step": step} for step in ("linearized", "gradient", "bregman", "exact")},
    "x_step": {step: {"x_step": step} for step in ("prox", "mirror")},
    "w_step": {
        "exact": {},
        **{f"gradient, tau_w {tau:g}": {"w_step": "gradient", "tau_w": tau} for tau in (1.0, 1.9)},
    },
    "tau_x": {f"{tau:g}": {"tau_x": tau} for tau in (0.5, 1.0, 1.5, 1.9)},
    "tau_z": {f"{tau:g}": {"tau_z": tau} for tau in (0.5, 1.0, 1.5, 1.9)},
    "tau_m": {f"{tau:g}": {"tau_m": tau} for tau in (0.0, 0.5, 1.0, 1.5, 1.9)},
    "rho": {f"{rho:g}": {"rho": rho} for rho in (0.1, 0.3, 1.0, 3.0, 10.0)},
    "mu": {f"{mu:g}": {"mu": mu} for mu in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)},
    "ridge": {f"{ridge:g}": {"ridge": ridge} for ridge in (0.001, 10.0, 30.0, 100.0, 300.0, 1000.0)},
    "together": {
        "ZWXM, all taus 1, mu 1": {"order": "ZWXM", "tau_x": 1.0, "mu": 1.0},
        "the same, ridges 0.001": {"order": "ZWXM", "tau_x": 1.0, "mu": 1.0, "ridge": 1e-3, "ridge_2": 1e-3},
        **{
            f"WXZM, z {step}, mu 1, ridges 0.001": {
                "order": "WXZM", "z_step": step, "mu": 1.0, "ridge": 1e-3, "ridge_2": 1e-3
            }
            for step in ("gradient", "bregman")
        },
    },
}  # fmt: skip
"""Of each setting its values, and what they change."""


def unchanged(name: str, value: str) -> bool:
    """Whether this value of a setting is the one that others are compared with."""
    return name in BASE and {**BASE, **CHANGES[name][value]} == BASE


def run(setting: Setting, report: Report) -> None:
    size, seed = setting.size(1000, 100), setting.seeds[0]
    at = setting.size((10, 20, 500), (2, 5, 10))
    pixels, hidden = setting.images.pixels, setting.size(64, 16)
    problem = setting.images.denoising(size, seed)
    done: dict[str, list[Point]] = {}
    found: dict[str, dict[str, Run]] = {}
    refused = []
    pairs = [(name, value, changes) for name, values in CHANGES.items() for value, changes in values.items()]
    for name, value, changes in report.track(pairs, "sensitivity"):
        settings = {**BASE, **changes}
        if str(settings) not in done:
            try:
                way = badmm(**settings)
                done[str(settings)] = measure(way, network((pixels, hidden, pixels), seed), problem, at)
            except ConfigError:
                refused.append(f"{name} {value}")
                continue
        found.setdefault(name, {})[value] = Run(name, value, seed, done[str(settings)])
    report.runs([row for runs in found.values() for run in runs.values() for row in run.rows()], "runs")
    title = f"{pixels}-{hidden}-{pixels}, {size} images, seed {seed}"
    report.table(f"{title}: MSE / PSNR after iterations", [line(run, at) for f in found.values() for run in f.values()])
    report.figure("settings", draw(found, at, title))
    conclude(found, refused, at, report)


def line(run: Run, at: tuple[int, ...]) -> dict[str, str]:
    star = " (unchanged)" if unchanged(run.method, run.settings) else ""
    cells = {f"@{k}": "diverged" if run.diverged(k) else f"{run.at(k).loss:.5f} / {run.at(k).score:.2f}" for k in at}
    return {"setting": run.method, "value": run.settings + star, **cells}


def draw(found: Mapping[str, Mapping[str, Run]], at: tuple[int, ...], title: str) -> Figure:
    """Held-out PSNR for each value of each setting; crosses at the bottom diverged."""
    figure, axes = plots.panels(3, 4, 3.0, 2.5, sharey=True)
    scores = [run.at(k).score for runs in found.values() for run in runs.values() for k in at if not run.diverged(k)]
    floor = max(min(scores), max(scores) - 6)
    for axis, (name, runs) in zip(axes.flat, found.items(), strict=False):
        for k, colour, marker in zip(at, ("#56B4E9", "#0072B2", "#D55E00"), "os^", strict=True):
            ys = [floor - 0.4 if run.diverged(k) else max(run.at(k).score, floor) for run in runs.values()]
            axis.plot(range(len(ys)), ys, marker + "-", color=colour, markersize=4, linewidth=0.8, label=f"after {k}")
            for x, run in enumerate(runs.values()):
                if run.diverged(k):
                    axis.plot(x, floor - 0.4, "X", color="black", markersize=8)
        labels = [value.replace(", ", ",\n") for value in runs]
        small = {"fontsize": 6 if name == "together" else 8, "rotation": 30 if len("".join(runs)) > 18 else 0}
        axis.set_xticks(range(len(runs)), labels, **small)
        for x, value in enumerate(runs):
            if unchanged(name, value):
                axis.axvline(x, color="#bbbbbb", linewidth=5, alpha=0.5, zorder=0)
        axis.set_title(name)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    axes.flat[len(found)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.suptitle(
        f"BADMM, {title}: held-out PSNR in dB, cut at {floor:.1f}; grey: unchanged, X: diverged", fontsize=10
    )
    return figure


def conclude(found: Mapping[str, Mapping[str, Run]], refused: list[str], at: tuple[int, ...], report: Report) -> None:
    last = at[-1]
    singles = [run for name, runs in found.items() if name != "together" for run in runs.values()]
    every = [run for runs in found.values() for run in runs.values()]
    failed = [f"{run.method} {run.settings}" for run in every if run.diverged(last)]
    report.say(
        f"Diverged within {last} iterations: {'; '.join(failed) or 'none'}. "
        f"Refused by BADMM before it runs: {'; '.join(refused) or 'none'}."
    )
    for k in (at[0], last):
        extent = {
            name: max(run.at(k).score for run in runs) - min(run.at(k).score for run in runs)
            for name in found
            if name != "together" and (runs := [run for run in singles if run.method == name and not run.diverged(k)])
        }
        order = sorted(extent, key=lambda name: -extent[name])
        report.say(
            f"Held-out PSNR after {k} iterations depends, from most to least, on "
            + ", ".join(f"{name} ({extent[name]:.2f} dB)" for name in order)
            + ": the extent over the values above that did not diverge."
        )
