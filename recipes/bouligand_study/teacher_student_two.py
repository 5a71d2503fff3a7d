"""Two layers: a dense erosion of a dense dilation, 16 to 16 to 8, with teacher weights U(-0.6, 0)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import plots
import torch
from report import Report, Setting, pivot, short, summary
from torch import Tensor, nn
from training import Method, Normal, Schedule, fit, half_squared_error

from morphlightning.interfaces import Spec
from morphlightning.layers import Dilation, Erosion

INPUTS, HIDDEN, OUTPUTS = 16, 16, 8
TUNING = range(100, 200)
"""Our rates and widths are chosen on the first three of these that are not reported, and on no reported one."""

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BASELINE = [Method(f"autograd, Adam {lr:g}", optimizer="adam", lr=lr) for lr in RATES]


def bouligand(eps: float) -> Spec:
    return {"name": "bouligand", "eps": eps}


def soft(beta: float) -> Spec:
    return {"name": "soft", "beta": beta}


CANDIDATES = [
    Method(f"soft beta={beta:g}, Adam {lr:g}", soft(beta), optimizer="adam", lr=lr)
    for beta in (10.0, 15.0, 20.0)
    for lr in (0.02, 0.03, 0.05)
] + [
    Method(f"bouligand eps={eps:g} + count, SGD {lr:g}", bouligand(eps), "count_normalized", lr=lr)
    for eps in (0.01, 0.02, 0.03)
    for lr in (0.2, 0.3)
]

RULES = {
    "first": "first",
    "uniform": "uniform",
    "uniform eps=.02": {"name": "uniform", "eps": 0.02},
    "all": "all",
    "bouligand": "bouligand",
    "bouligand eps=.02": bouligand(0.02),
    "soft beta=15": soft(15.0),
}
OPTIMIZERS = {
    "SGD 1": Method("", lr=1.0),
    "SGD .3 + count": Method("", heuristic="count_normalized", lr=0.3),
    "Adam .01": Method("", optimizer="adam", lr=0.01),
}
INITIALIZERS: dict[str, Spec] = {
    "U(0, .1)": "upper",
    "zeros": "zeros",
    "N(0, .5)": Normal(0.5),
    "U(-1, -.8)": {"name": "uniform", "low": -1.0, "high": -0.8},
}


def network(initializer: Spec, generator: torch.Generator, **rules: Spec) -> nn.Sequential:
    """Erosion of a dilation."""
    options = {"initializer": initializer, "generator": generator, **rules}
    return nn.Sequential(Dilation(INPUTS, HIDDEN, **options), Erosion(HIDDEN, OUTPUTS, **options))


def task(seed: int, samples: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Inputs, targets, and the generator that goes on to the student."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, INPUTS, generator=generator)
    teacher = network({"name": "uniform", "low": -0.6, "high": 0.0}, generator)
    with torch.no_grad():
        return x, teacher(x), generator


def error(method: Method, seed: int, setting: Setting, initializer: Spec = "upper") -> float:
    """Mean squared error of the trained student over the variance of the targets."""
    x, y, generator = task(seed, setting.size(2000, 200))
    student = network(initializer, generator, **method.rules)
    fit(student, x, y, half_squared_error, method, Schedule(setting.size(30, 2), 50), generator)
    with torch.no_grad():
        return ((student(x) - y).square().mean() / y.var(0).mean()).item()


def two_layers(setting: Setting, report: Report) -> None:
    best = tuned(setting, report)
    baseline = compare(setting, report, best)
    by_rule(setting, report)
    by_initializer(setting, report, baseline, best)


def tuned(setting: Setting, report: Report) -> dict[str, Method]:
    """Choose our rates on seeds of their own: the best method of each family."""
    seeds = [seed for seed in TUNING if seed not in setting.seeds][: setting.size(3, 1)]
    candidates = CANDIDATES[:: len(CANDIDATES) - 1] if setting.quick else CANDIDATES
    rows = [
        {"method": method.label, "seed": seed, "error": error(method, seed, setting)}
        for method in report.track(candidates, "two layers, tuning ours")
        for seed in seeds
    ]
    report.runs("tuning", rows)
    shown = sorted(summary(rows, ["method"], ["error"]), key=lambda row: row["error"].mean)
    report.table(f"Two layers: tuning ours on seeds {seeds[0]} to {seeds[-1]}, MSE / variance", shown[:10])
    by_label = {method.label: method for method in candidates}
    best: dict[str, Method] = {}
    for row in shown:
        best.setdefault(row["method"].split()[0], by_label[row["method"]])
    return best


def ours_and_others(best: dict[str, Method]) -> list[Method]:
    """Tuned ones, then messages and updates beside the tuned bouligand rule, whose weights they share."""
    rule, lr = best["bouligand"].derivative, best["bouligand"].lr
    messages = [
        Method(f"bouligand + count, message {name}", rule, [{"name": name, **more}, "count_normalized"], lr=lr)
        for name, more in MESSAGES.items()
    ]
    return [*best.values(), *messages, *UPDATES]


MESSAGES: dict[str, dict[str, Any]] = {
    "best": {"eps": 0.01},
    "chebyshev": {"eps": 0.01},
    "adjoint": {"eps": 0.01},
    "shift": {},
    "target": {"tau": 0.3},
}
PROJECTION = {"name": "projection", "tau": 0.3}
UPDATES = [
    Method("first + count, SGD 0.3", heuristic="count_normalized", lr=0.3),
    Method("projection, SGD 0.3", heuristic=PROJECTION, lr=0.3),
    Method("projection + count, SGD 0.3", heuristic=[PROJECTION, "count_normalized"], lr=0.3),
    Method("radius_clipped, SGD 1", heuristic="radius_clipped"),
    Method("sup_norm, SGD 0.03", heuristic={"name": "sup_norm"}, lr=0.03),
    Method("morph_sgd 0.3", optimizer="morph_sgd", lr=0.3),
]


def compare(setting: Setting, report: Report, best: dict[str, Method]) -> Method:
    """Everything against autograd with the best of five rates, on the reported seeds; the best autograd."""
    methods = [*BASELINE, *ours_and_others(best)]
    rows = [
        {"method": method.label, "seed": seed, "error": error(method, seed, setting)}
        for method in report.track(methods, "two layers, methods")
        for seed in setting.seeds
    ]
    report.runs("two_layers", rows)
    shown = summary(rows, ["method"], ["error"])
    report.table("Two layers, start U(0, .1): MSE / variance", shown)
    errors = {row["method"]: row["error"] for row in shown}
    baseline = min(BASELINE, key=lambda method: errors[method.label].mean)
    ours = min((method.label for method in best.values()), key=lambda label: errors[label].mean)
    theirs = errors[baseline.label]
    gain = 1 - errors[ours].mean / theirs.mean
    report.verdict(
        "Our best combination, tuned on other seeds, has an error at least 20 % below autograd's with the best of five "
        "rates, chosen on the reported seeds.",
        f"{ours}: {errors[ours]}; {baseline.label}: {theirs}; {100 * gain:.0f} % below.",
        gain >= 0.2,
    )
    draw_methods(report, shown, baseline.label)
    return baseline


def by_rule(setting: Setting, report: Report) -> None:
    """Each derivative rule with each optimizer, at the same rates."""
    rows = [
        {
            "rule": rule,
            "optimizer": optimizer,
            "seed": seed,
            "error": error(replace(method, derivative=RULES[rule]), seed, setting),
        }
        for rule in report.track(list(RULES), "two layers, rules")
        for optimizer, method in OPTIMIZERS.items()
        for seed in setting.few
    ]
    report.runs("rules", rows)
    shown = summary(rows, ["rule", "optimizer"], ["error"])
    report.table("Two layers, rule by optimizer: MSE / variance", pivot(shown, "rule", "optimizer", "error"))
    mean = {(row["rule"], row["optimizer"]): row["error"].mean for row in shown}
    better = [name for name in OPTIMIZERS if mean["bouligand eps=.02", name] < mean["first", name]]
    report.verdict(
        "Messages to near winners as well (bouligand, eps = .02) help every optimizer.",
        f"better than first with {', '.join(better) or 'none'}, of {', '.join(OPTIMIZERS)}.",
        len(better) == len(OPTIMIZERS),
    )
    ratio = mean["first", "SGD 1"] / mean["first", "SGD .3 + count"]
    report.verdict(
        "Counts are worth several times the plain rule under SGD.",
        f"error {short(mean['first', 'SGD .3 + count'])} with counts, {short(mean['first', 'SGD 1'])} without.",
        ratio > 2,
    )


def by_initializer(setting: Setting, report: Report, baseline: Method, best: dict[str, Method]) -> None:
    """The best autograd and the tuned methods from four starts."""
    methods = [baseline, *best.values()]
    rows = [
        {"start": start, "method": method.label, "seed": seed, "error": error(method, seed, setting, initializer)}
        for start, initializer in report.track(list(INITIALIZERS.items()), "two layers, starts")
        for method in methods
        for seed in setting.few
    ]
    report.runs("starts", rows)
    shown = summary(rows, ["start", "method"], ["error"])
    report.table("Two layers, start by method: MSE / variance", pivot(shown, "start", "method", "error"))
    mean = {(row["start"], row["method"]): row["error"].mean for row in shown}
    worst = max(mean["U(0, .1)", method.label] / mean["zeros", method.label] for method in methods)
    report.verdict(
        "In depth a start at zero is much worse than a narrow spread: units that start equal part late.",
        "errors from zeros " + ", ".join(f"{short(mean['zeros', method.label])}" for method in methods) + ".",
        worst < 0.5,
    )


def draw_methods(report: Report, shown: list[dict[str, Any]], baseline: str) -> None:
    figure, axes = plots.panels(1, 1, 8.0, 0.32 * len(shown) + 1.2)
    (axis,) = axes[0]
    labels = [row["method"] for row in shown]
    colours = [colour_of(label, baseline) for label in labels]
    plots.dots(axis, labels, [row["error"] for row in shown], colours)
    reference = next(row["error"].mean for row in shown if row["method"] == baseline)
    axis.axvline(reference, color=plots.GREY, linestyle="--", linewidth=1)
    axis.set_xlabel("mean squared error / variance of the target (bars: standard deviation over seeds)")
    axis.set_title("Two-layer student: dashed, the best autograd")
    report.figure("two_layers", figure)


def colour_of(label: str, baseline: str) -> str:
    """Autograd grey, the soft rule blue, the bouligand rule orange, other updates green."""
    if label.startswith("autograd"):
        return plots.GREY
    return {"soft": plots.BLUE, "bouligand": plots.ORANGE}.get(label.split()[0], plots.GREEN)
