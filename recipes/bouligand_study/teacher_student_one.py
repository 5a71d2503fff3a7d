"""One layer: a dense dilation, 20 to 10, with teacher weights U(-0.5, 0) and inputs U(0, 1)."""

from __future__ import annotations

from typing import Any

import plots
import torch
from report import Report, Setting, pivot, short, summary
from torch import Tensor
from training import Method, Normal, Schedule, fit, half_squared_error

from morphlightning.interfaces import Spec
from morphlightning.layers import Dilation, initialize

INPUTS, OUTPUTS = 20, 10
HALF = {"name": "projection", "tau": 0.5}
NEAR = {"name": "bouligand", "eps": 0.02}

METHODS = [
    Method("first, lr 1", lr=1.0),
    Method("first, lr .1", lr=0.1),
    Method("first + count, lr 1", heuristic="count_normalized", lr=1.0),
    Method("bouligand + count, lr .5", NEAR, "count_normalized", lr=0.5),
    Method("soft, Adam .03", {"name": "soft", "beta": 15.0}, optimizer="adam", lr=0.03),
    Method("projection, lr .5", heuristic=HALF, lr=0.5),
    Method("projection + count, lr .5", heuristic=[HALF, "count_normalized"], lr=0.5),
]
INITIALIZERS: dict[str, Spec] = {
    "above: U(0, .2)": {"name": "upper", "spread": 0.2},
    "zeros": "zeros",
    "N(0, .5)": Normal(0.5),
    "below: U(-1, -.7)": {"name": "uniform", "low": -1.0, "high": -0.7},
    "residual": "residual",
}


def task(seed: int, samples: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Inputs, targets, and the generator that goes on to the student."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, INPUTS, generator=generator)
    teacher = Dilation(INPUTS, OUTPUTS, initializer={"name": "uniform", "low": -0.5, "high": 0.0}, generator=generator)
    with torch.no_grad():
        return x, teacher(x), generator


def train(method: Method, initializer: Spec, seed: int, setting: Setting) -> dict[str, Any]:
    """Mean squared error and share of dead weights of the trained student."""
    x, y, generator = task(seed, setting.size(2000, 200))
    student = Dilation(INPUTS, OUTPUTS, initializer=initializer, generator=generator, **method.rules)
    initialize(student, [(x, y)])
    fit(student, x, y, half_squared_error, method, Schedule(setting.size(40, 2), 50, "constant"), generator)
    with torch.no_grad():
        return {"mse": (student(x) - y).square().mean().item(), "dead": dead(student, x)}


def dead(layer: Dilation, x: Tensor) -> float:
    """Share of weights that win for no sample."""
    winners = (x[:, None] + layer.weight).argmax(2)
    wins = torch.zeros_like(layer.weight).index_put_((torch.arange(OUTPUTS), winners), torch.ones(()), accumulate=True)
    return (wins == 0).float().mean().item()


def one_layer(setting: Setting, report: Report) -> None:
    rows = [
        {"start": start, "method": method.label, "seed": seed, **train(method, initializer, seed, setting)}
        for start, initializer in report.track(list(INITIALIZERS.items()), "one layer")
        for method in METHODS
        for seed in setting.few
    ]
    report.runs("one_layer", rows)
    shown = summary(rows, ["start", "method"], ["mse", "dead"])
    report.table("One layer: mean squared error", pivot(shown, "method", "start", "mse"))
    report.table("One layer: share of weights that never win", pivot(shown, "method", "start", "dead"))
    mse = {(row["start"], row["method"]): row["mse"].mean for row in shown}
    fallen = {row["start"]: row["dead"].mean for row in shown if row["method"] == "first, lr 1"}
    above, below = "above: U(0, .2)", "below: U(-1, -.7)"
    plain, counted = mse[above, "first, lr 1"], mse[above, "first + count, lr 1"]
    report.verdict(
        "Normalized by counts the error falls to 1e-12 or less where plain SGD leaves about 1e-6.",
        f"{short(counted)} with counts, {short(plain)} without, after the same epochs.",
        counted <= 1e-12 and plain > 1e-8,
    )
    report.verdict(
        "A start from below kills weights, a start from above does not.",
        f"{100 * fallen[below]:.0f} % dead from below, {100 * fallen[above]:.0f} % from above; "
        f"errors {short(mse[below, 'first, lr 1'])} and {short(plain)}.",
        fallen[below] > 2 * fallen[above] and mse[below, "first, lr 1"] > plain,
    )
    learned = max(row["mse"].mean for row in shown if row["start"] == "residual" and "count" in row["method"])
    report.verdict(
        "The start that is learned from the data, the least of target minus input, is the solution already.",
        f"error at most {short(learned)} after training with counts.",
        learned <= 1e-12,
    )
    draw(report, shown)


def draw(report: Report, shown: list[dict[str, Any]]) -> None:
    figure, axes = plots.panels(1, 1, 8.4, 4.2)
    (axis,) = axes[0]
    for k, method in enumerate(METHODS):
        errors = [row["mse"] for row in shown if row["method"] == method.label]
        positions = [n + 0.1 * (k - len(METHODS) / 2) for n in range(len(errors))]
        axis.plot(
            positions, [e.mean for e in errors], plots.MARKERS[k % 6], color=plots.COLOURS[k % 6], label=method.label,
            markersize=7, fillstyle="full" if k < 6 else "none",
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel("mean squared error, mean over seeds")
    axis.set_xticks(range(len(INITIALIZERS)), INITIALIZERS)
    axis.set_xlabel("start")
    axis.set_title("One dense dilation learns a teacher of its own form")
    axis.grid(axis="y", color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right upper")
    report.figure("one_layer", figure)
