"""What is done with each trained network, and what is said about all of them."""

from __future__ import annotations

import statistics
from typing import Any

import figures
import torch
import training
from evaluation import Examined, examine
from shared.report import Report, spread
from training import Setting

RECORDS = {
    ("mnist", 0.1): (98.43, "De Palma et al., expressive losses, ICLR 2024"),
    ("mnist", 0.3): (94.02, "Lyu et al., CVPR 2021"),
    ("fashion", 0.1): (79.23, "Zhang et al., l_inf-dist + MLP, ICML 2021"),
}
"""Best certified accuracy in % that we found published for deterministic certificates, which other methods share."""


def study(setting: Setting, report: Report) -> None:
    """Train, certify, attack, export, draw."""
    found: list[Examined] = []
    seconds: list[float] = []
    for seed in setting.seeds:
        with report.part(f"seed {seed}", None):
            torch.set_flush_denormal(True)  # exponentials underflow while it trains
            model, took = training.train(setting, seed, report.folder / f"seed{seed}")
            torch.set_flush_denormal(False)  # certificates are for the arithmetic that everybody has
            one = examine(model, setting, report)
            tell(one, setting, took, report)
            found.append(one)
            seconds.append(took)
    first = found[0]
    report.name = "certified_mnist"
    report.figure("radii", figures.radii(found, setting, _records(setting)))
    if first.broken:
        report.figure("worst_cases", figures.worst_cases(first.broken, setting))
    report.runs([row for seed, one in zip(setting.seeds, found, strict=True) for row in one.rows(seed)])
    summary(found, seconds, setting, report)


def tell(one: Examined, setting: Setting, seconds: float, report: Report) -> None:
    """The tables of one network."""
    report.say(
        f"Trained for {seconds / 60:.1f} minutes. Test images: {one.count}, of which {100 * one.accuracy:.2f} % are "
        "classified rightly."
    )
    rows = [
        {
            "eps": f"{eps:.3g}",
            **{method: _interval(one.certified[method, eps]) for method in one.methods},
            "attacked": "-" if eps not in one.attacked else f"{100 * one.attacked[eps].upper:.2f}",
            "gap": "-" if eps not in one.attacked else f"{100 * one.attacked[eps].gap:.2f}",
        }
        for eps in one.radii
    ]
    report.table("Certified accuracy in % (95 % interval), accuracy under attack, and what is open between them", rows)
    off, most = 255 * one.integer.difference, 255 * one.integer.bound
    report.say(
        f"16-bit integers: the same class as in floating point for {100 * one.integer.decisions:.2f} % of the images. "
        f"Logits differ by at most {off:.2f} grey levels; {most:.1f} can be."
    )
    best = [record for (name, eps), record in RECORDS.items() if name == setting.dataset and eps == setting.eps]
    for accuracy, source in best:
        report.say(f"The best that we found published at eps = {setting.eps}: {accuracy} % ({source}).")


def summary(found: list[Examined], seconds: list[float], setting: Setting, report: Report) -> None:
    """Mean and standard deviation over the seeds."""
    rows = []
    for eps in found[0].radii:
        certified = [100 * max(one.certified[method, eps].share for method in one.methods) for one in found]
        rows.append({"eps": f"{eps:.3g}", "certified by the best method (%)": spread(certified, 2)})
    report.table(f"{len(found)} network(s), {statistics.fmean(seconds) / 60:.1f} minutes of training each", rows)
    report.say(f"Accuracy {spread([100 * one.accuracy for one in found], 2)} %.")


def _interval(counted: Any) -> str:
    return f"{100 * counted.share:.2f} ({100 * counted.low:.1f}-{100 * counted.high:.1f})"


def _records(setting: Setting) -> dict[float, float]:
    return {eps: accuracy / 100 for (name, eps), (accuracy, _) in RECORDS.items() if name == setting.dataset}
