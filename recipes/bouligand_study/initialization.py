"""Where should weights start: non-negative, signed, wide or narrow, one class apart from the other?

Expected. Advice is to start non-negative. A morphological layer moves with its weights, dilation by w + c is dilation
by w plus c, so before a linear layer with a bias, and before a softmax, a common level can make no difference: what
should count is the spread, small against the data so that many candidates win. In a max-plus head units that start
alike compete for the same inputs, and a start that gives each class inputs of its own should win.
"""

from __future__ import annotations

from typing import Any

import classify
import plots
from images import IMAGES, data_sets
from report import Report, Setting, pivot, summary
from training import Normal

from morphlightning.interfaces import Spec

STARTS: dict[str, Spec] = {
    "U(0, .1)": "upper",
    "U(-.1, 0)": {"name": "uniform", "low": -0.1, "high": 0.0},
    "N(0, .05)": Normal(0.05),
    "N(0, .5)": Normal(0.5),
    "sparse": "sparse",
}
NETWORKS = {"input side": classify.dense_input, "head": classify.dense_output}


def run(setting: Setting, report: Report) -> None:
    cases = [(images, place, start) for images in data_sets(setting, IMAGES) for place in NETWORKS for start in STARTS]
    rows = [
        {"data": images.name, "place": place, "start": start, "seed": seed}
        | classify.train(NETWORKS[place], images, classify.AUTOGRAD, seed, setting, STARTS[start])
        for images, place, start in report.track(cases, "starts")
        for seed in setting.few
    ]
    report.runs("starts", rows)
    shown = summary(rows, ["data", "place", "start"], ["accuracy", "ever %"])
    for place in NETWORKS:
        here = [row for row in shown if row["place"] == place]
        report.table(f"Start, {place}: test accuracy in %", pivot(here, "data", "start", "accuracy"))
        report.table(f"Start, {place}: weights that ever had a gradient, %", pivot(here, "data", "start", "ever %"))
    for data in dict.fromkeys(row["data"] for row in rows):
        judge(report, data, {(row["place"], row["start"]): row["accuracy"] for row in shown if row["data"] == data})
    draw(report, shown)


def judge(report: Report, data: str, accuracy: dict[tuple[str, str], Any]) -> None:
    above, below = accuracy["input side", "U(0, .1)"], accuracy["input side", "U(-.1, 0)"]
    wide, narrow = accuracy["input side", "N(0, .5)"], accuracy["input side", "N(0, .05)"]
    report.verdict(
        f"Non-negative weights at the input train better than non-positive ones of the same spread ({data}).",
        f"accuracy {above} from U(0, .1), {below} from U(-.1, 0).",
        above.mean > below.mean + above.deviation + below.deviation,
    )
    report.verdict(
        f"At the input a narrow start is better than a wide one ({data}).",
        f"accuracy {narrow} from N(0, .05), {wide} from N(0, .5).",
        narrow.mean > wide.mean,
    )
    heads = {start: accuracy["head", start] for start in STARTS}
    others = max((start for start in heads if start != "sparse"), key=lambda start: heads[start].mean)
    report.verdict(
        f"A head should start with inputs of its own for each class ({data}).",
        f"accuracy {heads['sparse']} from sparse, {heads[others]} from the best other start, {others}.",
        heads["sparse"].mean > heads[others].mean,
    )


def draw(report: Report, shown: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["data"] for row in shown))
    figure, axes = plots.panels(len(NETWORKS), len(names), 4.0, 2.4, sharey=True, sharex=True)
    for line, place in zip(axes, NETWORKS, strict=True):
        for axis, name in zip(line, names, strict=True):
            rows = [row for row in shown if (row["data"], row["place"]) == (name, place)]
            plots.bars(axis, [row["start"] for row in rows], [row["accuracy"] for row in rows], plots.COLOURS)
            axis.set_xlim(0, 115)
            axis.set_title(f"{name}, {place}")
            axis.tick_params(axis="x", labelbottom=True)
    for axis in axes[-1]:
        axis.set_xlabel("test accuracy, %")
    report.figure("starts", figure)
