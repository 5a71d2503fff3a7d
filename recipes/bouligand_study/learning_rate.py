"""How large may a step be: the rate against the radius within which the first-order model is exact.

Expected. Along a step the outputs are affine up to a radius, where the first candidate overtakes; gaps between
candidates are tiny, so nearly every useful step goes beyond it. That is no obstacle: inside one cell the mean squared
error has the Hessian diag(p), p the frequency of winning, so any rate below 2 is stable, and with counts a rate of 1 is
Newton's. Held to the radius, training should be slow.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import plots
import torch
from report import Report, Setting, Spread, short, summary
from teacher_student_one import INPUTS, OUTPUTS, task
from torch import Tensor
from training import Method, Schedule, fit, half_squared_error

from morphlightning.bouligand import exact_radius
from morphlightning.layers import Dilation

RATES = (0.03, 0.1, 0.3, 1.0, 1.9, 4.0, 10.0)
METHODS = [
    Method("plain"),
    Method("with counts", heuristic="count_normalized"),
    Method("held to the radius", heuristic="radius_clipped"),
]
EVERY = 20
"""Steps between two measurements of the radius."""


def run(setting: Setting, report: Report) -> None:
    cases = [(method, lr) for method in METHODS for lr in RATES]
    rows = [
        {"method": method.label, "lr": lr, "seed": seed, **measure(replace(method, lr=lr), seed, setting)}
        for method, lr in report.track(cases, "rates")
        for seed in setting.few
    ]
    report.runs("rates", rows)
    shown = summary(rows, ["method", "lr"], ["rows crossing %", "steps crossing %", "radius 10 %", "mse"])
    report.table("One layer: rows whose step crosses the radius, radius (in steps of rate 1), final error", shown)
    found = {(row["method"], row["lr"]): row for row in shown}
    judge(report, found)
    draw(report, found)


def measure(method: Method, seed: int, setting: Setting) -> dict[str, float]:
    """Train from above; radius of each row of the batch along the step, by quantiles, and the final error."""
    x, y, generator = task(seed, setting.size(2000, 200))
    student = Dilation(
        INPUTS, OUTPUTS, initializer={"name": "upper", "spread": 0.2}, generator=generator, **method.rules
    )
    radii: list[Tensor] = []
    steps = 0

    def watch(batch: Tensor) -> None:
        nonlocal steps
        if steps % EVERY == 0:
            radii.append(exact_radius(batch, student.weight.detach(), None, -student.weight.grad).flatten())
        steps += 1

    fit(student, x, y, half_squared_error, method, Schedule(setting.size(20, 2), 50, "constant"), generator, watch)
    radius = torch.cat(radii)
    with torch.no_grad():
        mse = (student(x) - y).square().mean().item()
    return {
        "rows crossing %": 100 * (radius < method.lr).double().mean().item(),
        "steps crossing %": 100 * torch.stack([(r < method.lr).any() for r in radii]).double().mean().item(),
        "radius 10 %": radius.quantile(0.1, interpolation="nearest").item(),
        "mse": mse if math.isfinite(mse) else math.inf,
    }


def judge(report: Report, found: dict[tuple[str, float], dict[str, Any]]) -> None:
    mse = {key: row["mse"].mean for key, row in found.items()}
    best = min((key for key in found if key[0] != "held to the radius"), key=mse.__getitem__)
    crossing: Spread = found[best]["rows crossing %"]
    report.verdict(
        "Steps beyond the radius are no obstacle: the best rate crosses it in many rows.",
        f"best {best[0]}, rate {best[1]:g}: {crossing} % of the rows cross, error {short(mse[best])}.",
        crossing.mean > 10,
    )
    plain = {lr: mse["plain", lr] for lr in RATES}
    report.verdict(
        "Plain SGD is stable for every rate below 2, the bound for a weight that always wins.",
        errors(plain),
        all(error < 1e-1 for lr, error in plain.items() if lr < 2),
    )
    counted = {lr: mse["with counts", lr] for lr in RATES}
    report.verdict(
        "With counts a rate of 1 is the best.",
        errors(counted),
        min(counted, key=counted.__getitem__) == 1.0,
    )
    held, free = (min(mse[name, lr] for lr in RATES) for name in ("held to the radius", "plain"))
    report.verdict(
        "Steps that are held to the radius train more slowly.",
        f"error {short(held)} held, {short(free)} free, each with its best rate.",
        held > free,
    )


def errors(by_rate: dict[float, float]) -> str:
    return ", ".join(f"{short(error)} at {lr:g}" for lr, error in by_rate.items()) + "."


def draw(report: Report, found: dict[tuple[str, float], dict[str, Any]]) -> None:
    figure, (axes,) = plots.panels(1, 2, 4.8, 3.8)
    for k, method in enumerate(METHODS):
        style = {"color": plots.COLOURS[k], "marker": plots.MARKERS[k], "label": method.label}
        rows = [found[method.label, lr] for lr in RATES]
        axes[0].plot(RATES, [row["rows crossing %"].mean for row in rows], **style)
        axes[1].plot(RATES, [row["mse"].mean for row in rows], **style)
    axes[0].set_ylabel("rows whose step crosses the radius, %")
    axes[1].set_ylabel("mean squared error after 20 epochs")
    axes[1].set_ylim(1e-17, 1e3)
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xscale("log")
        axis.set_xticks(RATES, [f"{lr:g}" for lr in RATES])
        axis.minorticks_off()
        axis.set_xlabel("learning rate")
    axes[1].axvline(2, color="black", linestyle="--", linewidth=0.8)
    bound = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "rotation": 90, "ha": "right"}
    axes[1].annotate("bound 2", (2, 0.75), (-4, 0), fontsize=8, **bound)
    axes[0].legend()
    report.figure("rates", figure)
