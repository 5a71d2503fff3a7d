"""How deep may a stack of morphological layers be, and where in a network should they stand?

Expected. Autograd sends the message of a maximum along one path, so of a stack that ends in m outputs each sample
reaches at most m weights a layer, and depth starves the first ones. Layers closer to the input and dense layers should
be more favourable: before a linear layer every unit has a message of its own; a window's weights are shared by all
positions, whose demands conflict.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import classify
import plots
import torch
from images import IMAGES, data_sets
from report import Report, Setting, Spread, pivot, short, summary
from torch import nn
from training import Method, Schedule, fit, half_squared_error

from morphlightning.layers import Dilation, Erosion

WIDTH, OUTPUTS = 16, 8
DEPTHS = (1, 2, 3, 4)
RATES = (0.003, 0.01, 0.03)
RULES = {"autograd": Method("autograd", optimizer="adam"), "soft": replace(classify.SOFT)}
NETWORKS: dict[str, tuple[classify.Build, bool]] = {
    "linear": (classify.linear, False),
    "linear, ReLU, linear": (classify.two_linear, False),
    "dense dilation, linear": (classify.dense_input, True),
    "linear, dense dilation": (classify.dense_output, True),
    "windowed dilation, linear": (classify.window_input, True),
    "convolution, windowed dilation": (classify.window_output, True),
}


def run(setting: Setting, report: Report) -> None:
    synthetic = depth_of_teacher(setting, report)
    images = depth_on_images(setting, report)
    draw_depth(report, synthetic, images)
    position(setting, report)


def network(depth: int, generator: torch.Generator, **options: Any) -> nn.Sequential:
    """Dilations and erosions by turns; all but the last of equal width."""
    sizes = [WIDTH] * depth + [OUTPUTS]
    kinds = [Erosion if k % 2 else Dilation for k in range(depth)]
    return nn.Sequential(
        *(kind(*sizes[k : k + 2], generator=generator, **options) for k, kind in enumerate(kinds))  # type: ignore[arg-type]
    )


def error(depth: int, method: Method, seed: int, setting: Setting) -> float:
    """Error of a student of the teacher's depth, over the variance of the target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(setting.size(2000, 200), WIDTH, generator=generator)
    teacher = network(depth, generator, initializer={"name": "uniform", "low": -0.6, "high": 0.0})
    with torch.no_grad():
        y = teacher(x)
    student = network(depth, generator, **method.rules)
    fit(student, x, y, half_squared_error, method, Schedule(setting.size(30, 2), 50), generator)
    with torch.no_grad():
        return ((student(x) - y).square().mean() / y.var(0).mean()).item()


def depth_of_teacher(setting: Setting, report: Report) -> list[dict[str, Any]]:
    """The best of three rates for each rule and depth."""
    cases = [(depth, rule, lr) for depth in DEPTHS for rule in RULES for lr in RATES]
    rows = [
        {
            "depth": depth,
            "rule": rule,
            "lr": lr,
            "seed": seed,
            "error": error(depth, replace(RULES[rule], lr=lr), seed, setting),
        }
        for depth, rule, lr in report.track(cases, "depth, teacher and student")
        for seed in setting.few
    ]
    report.runs("teacher", rows)
    best: dict[tuple[int, str], dict[str, Any]] = {}
    for row in sorted(summary(rows, ["depth", "rule", "lr"], ["error"]), key=lambda row: row["error"].mean):
        best.setdefault((row["depth"], row["rule"]), row)
    shown = [best[depth, rule] for depth in DEPTHS for rule in RULES]
    title = "Depth, teacher and student of width 16: MSE / variance, Adam with the best of three rates"
    report.table(title, pivot(shown, "depth", "rule", "error"))
    first, last = best[1, "autograd"]["error"].mean, best[DEPTHS[-1], "autograd"]["error"].mean
    report.verdict(
        "Depth makes autograd's students worse.",
        f"error {short(first)} with one layer, {short(last)} with four.",
        last > 2 * first,
    )
    wins = [depth for depth in DEPTHS if best[depth, "soft"]["error"].mean < best[depth, "autograd"]["error"].mean]
    report.verdict(
        "The soft rule helps at every depth from two layers on.",
        f"better at depths {', '.join(map(str, wins)) or 'none'}.",
        {2, 3, 4} <= set(wins),
    )
    return shown


def depth_on_images(setting: Setting, report: Report) -> list[dict[str, Any]]:
    cases = [
        (images, depth, method)
        for images in data_sets(setting, IMAGES)
        for depth in DEPTHS
        for method in (classify.AUTOGRAD, classify.SOFT)
    ]
    rows = [
        {"data": images.name, "depth": depth, "rule": method.label, "seed": seed}
        | classify.train(classify.stack(depth), images, method, seed, setting)
        for images, depth, method in report.track(cases, "depth, images")
        for seed in setting.few
    ]
    report.runs("images", rows)
    shown = summary(rows, ["data", "depth", "rule"], ["accuracy", "sample %", "ever %"])
    report.table("Depth on images: dense dilations and erosions by turns, then a linear layer", shown)
    for data in dict.fromkeys(row["data"] for row in rows):
        judge_depth(report, data, [row for row in shown if row["data"] == data])
    return shown


def judge_depth(report: Report, data: str, rows: list[dict[str, Any]]) -> None:
    mean = {(row["rule"], row["depth"]): row["accuracy"].mean for row in rows}
    of = {rule: ", ".join(f"{mean[rule, depth]:.1f}" for depth in DEPTHS) for rule in RULES}
    report.verdict(
        f"Depth makes autograd's classifiers worse ({data}).",
        f"accuracy {of['autograd']} % with one to four layers.",
        mean["autograd", DEPTHS[-1]] < mean["autograd", 1] - 1,
    )
    report.verdict(
        f"The soft rule helps classifiers at every depth ({data}).",
        f"accuracy {of['soft']} % with one to four layers.",
        all(mean["soft", depth] > mean["autograd", depth] for depth in DEPTHS),
    )


def position(setting: Setting, report: Report) -> None:
    cases = [
        (images, name, method)
        for images in data_sets(setting, IMAGES)
        for name, (_, has_rules) in NETWORKS.items()
        for method in ((classify.AUTOGRAD, classify.SOFT) if has_rules else (classify.AUTOGRAD,))
    ]
    rows = [
        {"data": images.name, "network": name, "rule": method.label, "seed": seed}
        | classify.train(NETWORKS[name][0], images, method, seed, setting)
        for images, name, method in report.track(cases, "position")
        for seed in setting.few
    ]
    report.runs("position", rows)
    shown = summary(rows, ["data", "network", "rule"], ["accuracy", "loss", "sample %", "ever %"])
    report.table("Position of a morphological layer: test accuracy in %, training loss, weights reached", shown)
    for data in dict.fromkeys(row["data"] for row in rows):
        judge_position(
            report, data, {row["network"]: row for row in shown if (row["data"], row["rule"]) == (data, "autograd")}
        )
    draw_position(report, shown)


def judge_position(report: Report, data: str, rows: dict[str, dict[str, Any]]) -> None:
    at_input, at_output = rows["dense dilation, linear"], rows["linear, dense dilation"]
    report.verdict(
        f"A dense layer at the input is easier to train than one at the output ({data}, autograd).",
        f"accuracy {at_input['accuracy']} at the input, {at_output['accuracy']} at the output (sparse start).",
        at_input["accuracy"].mean > at_output["accuracy"].mean,
    )
    windowed = rows["windowed dilation, linear"]
    report.verdict(
        f"At the input a dense layer is easier to train than a windowed one ({data}, autograd).",
        f"accuracy {at_input['accuracy']} dense, {windowed['accuracy']} windowed.",
        at_input["accuracy"].mean > windowed["accuracy"].mean,
    )


def draw_depth(report: Report, synthetic: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["data"] for row in images))
    figure, (axes,) = plots.panels(1, 1 + len(names), 3.6, 3.4)
    lines(axes[0], synthetic, "error", "teacher and student")
    axes[0].set_yscale("log")
    axes[0].set_ylabel("mean squared error / variance")
    for axis, name in zip(axes[1:], names, strict=True):
        lines(axis, [row for row in images if row["data"] == name], "accuracy", f"{name}, then a linear layer")
        axis.set_ylabel("test accuracy, %")
    axes[0].legend()
    report.figure("depth", figure)


def lines(axis: Any, rows: list[dict[str, Any]], value: str, title: str) -> None:
    for rule, colour, marker in zip(("autograd", "soft"), (plots.GREY, plots.BLUE), "os", strict=True):
        found: list[tuple[int, Spread]] = [(row["depth"], row[value]) for row in rows if row["rule"] == rule]
        axis.errorbar(
            [depth for depth, _ in found],
            [spread.mean for _, spread in found],
            yerr=[spread.deviation for _, spread in found],
            color=colour,
            marker=marker,
            capsize=3,
            label=rule,
        )
    axis.set_xticks(DEPTHS)
    axis.set_xlabel("morphological layers")
    axis.set_title(title)


def draw_position(report: Report, shown: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["data"] for row in shown))
    figure, (axes,) = plots.panels(1, len(names), 4.2, 3.9, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        rows = [row for row in shown if row["data"] == name]
        labels = [row["network"] + (", soft" if row["rule"] == "soft" else "") for row in rows]
        colours = [
            plots.GREY if "dilation" not in row["network"] else plots.BLUE if row["rule"] == "soft" else plots.ORANGE
            for row in rows
        ]
        plots.bars(axis, labels, [row["accuracy"] for row in rows], colours)
        axis.set_xlim(0, 112)
        axis.set_xlabel("test accuracy, %")
        axis.set_title(name)
    report.figure("position", figure)
