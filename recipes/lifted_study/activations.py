"""One hidden layer denoises 1000 images with ten activations: mu 3, ridge 100 and 1, nothing chosen by activation.

Training MSE and held-out PSNR of BADMM, whose X-step is a proximal map in closed form where there is one (auto) or the
mirror step, and of lifted MM; and the largest relative increase of the lifted objective in an iteration of lifted MM in
float64, which its proof puts at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import plots
import torch
from problems import Denoising
from report import Report
from study import Setting
from torch import nn
from training import Run, badmm, measure, mm, network

from morphlightning.bregman import Chain, MajorizeMinimize
from morphlightning.splines import LinearSpline

RIDGE = {"ridge": 100.0, "ridge_2": 1.0}
ROUNDING = 1e-12
"""Of a sum of so many numbers in float64, relative."""


def staircase() -> LinearSpline:
    """A spline on [-2, 2] with slopes 1 and 1/8 in turn."""
    spline = LinearSpline(knots=9, limit=2.0)
    slopes = torch.tensor([1.0, 0.125] * 4)
    values = 0.5 * torch.cat([torch.zeros(1), slopes.cumsum(0)])
    with torch.no_grad():
        spline.values.copy_(values - values[4])
    return spline


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu 0.1": lambda: nn.LeakyReLU(0.1),
    "hardtanh": nn.Hardtanh,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "softshrink 0.5": nn.Softshrink,
    "identity": nn.Identity,
    "spline, slopes 1 and 1/8": staircase,
    "softmax": lambda: nn.Softmax(-1),
}
WAYS = {
    "BADMM auto": badmm(**RIDGE),
    "BADMM mirror": badmm(**RIDGE, x_step="mirror"),
    "lifted MM": mm(**RIDGE),
}


def run(setting: Setting, report: Report) -> None:
    size, last, seed = setting.size(1000, 100), setting.size(100, 10), setting.seeds[0]
    pixels, hidden = setting.images.pixels, setting.size(64, 16)
    problem = setting.images.denoising(size, seed)
    exact = setting.images.denoising(size, seed, dtype=torch.float64)
    at = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= last]
    runs, lines, increases = [], [], {}
    for name, activation in report.track(list(ACTIVATIONS.items()), "activations"):
        line = {"activation": name}
        for method, way in WAYS.items():
            points = measure(way, network((pixels, hidden, pixels), seed, activation), problem, at)
            runs.append(Run(method, name, seed, points))
            failed = runs[-1].diverged(last)
            line[method] = "diverged" if failed else f"{points[-1].loss:.5f} / {points[-1].score:.2f}"
        net = network((pixels, hidden, pixels), seed, activation).double()
        increases[name] = largest_increase(net, exact, setting.size(500, 20))
        lines.append(line | {"largest increase": f"{increases[name]:.1e}"})
    report.runs([row for one in runs for row in one.rows()], "runs")
    report.runs([{"activation": name, "increase": value} for name, value in increases.items()], "increases")
    report.table(f"After {last} iterations, MSE / PSNR; seed {seed}", lines)
    title = f"{pixels}-{hidden}-{pixels}, {size} images, seed {seed}"
    auto = {one.settings: [one] for one in runs if one.method == "lifted MM"}
    report.figure("lifted_mm", plots.curves(auto, f"Lifted MM, {title}", ("iteration", "training MSE", "PSNR, dB")))
    conclude(runs, increases, last, report)


def largest_increase(net: nn.Sequential, problem: Denoising, iterations: int) -> float:
    """Of the lifted objective from one iteration of lifted MM to the next, relative; negative if it always fell."""
    method = MajorizeMinimize(Chain(net), problem.loss, ridge=(RIDGE["ridge"], RIDGE["ridge_2"]))
    samples, changes = method.start(*problem.train), [-math.inf]
    method.monitored = True
    for _ in range(iterations + 1):  # the objective is taken before an iteration
        method.iterate(samples, *problem.train)
        if "objective_change" in method.figures:
            changes.append(float(method.figures["objective_change"]))
    return max(changes)


def conclude(runs: list[Run], increases: dict[str, float], last: int, report: Report) -> None:
    failed = [f"{run.method} with {run.settings}" for run in runs if run.diverged(last)]
    scores = {run.settings: run.at(last).score for run in runs if run.method == "lifted MM"}
    worst, best = min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)
    report.say(
        f"{len(runs) - len(failed)} of {len(runs)} runs train without any tuning"
        + (f", but not {', '.join(failed)}" if failed else "")
        + f". Lifted MM reaches from {scores[worst]:.2f} dB ({worst}) to {scores[best]:.2f} dB ({best})."
    )
    top = max(increases, key=increases.__getitem__)
    if increases[top] < 0:
        found = f"falls in every iteration, relatively by {-increases[top]:.1e} at least ({top})"
    elif increases[top] <= ROUNDING:
        found = f"never increases by more than rounding, relatively by {increases[top]:.1e} at most ({top})"
    else:
        found = f"DOES INCREASE, relatively by up to {increases[top]:.1e} ({top})"
    report.say(f"The lifted objective {found}.")
