"""Images of 14 x 14 pixels, cross-entropy: the same certificate for four kinds of subnetworks.

Linear factors know their polar, so that their gaps are exact. Gain dilations and ReLU neurons know an upper bound that
is loose: what it certifies is true, and large. Of convolutional subnetworks no bound is known: nothing of them is
certified, and a search that finds no better slice proves nothing. A refutation holds for all four.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import figures
import torch.nn.functional as F
from growing import Stages, accuracy, train
from shared.networks import DATA
from shared.report import Report
from tables import row
from torch import Tensor, nn

from morphlightning.guarantees.optimality import Factor, GainDilation, Homogeneous, HomogeneousNetwork, Neuron

SIDE, CLASSES, WEIGHT = 14, 10, 0.01


@dataclass(frozen=True)
class Setting:
    images: int
    stages: Stages


PRESETS = {
    "tiny": Setting(60, Stages(slices=2, steps=3, starts=2, search=3)),
    "small": Setting(500, Stages(slices=10, steps=100, starts=6, search=40)),
    "full": Setting(5000, Stages(slices=30, steps=500, starts=16, search=150)),
}


def subnetworks() -> dict[str, tuple[Homogeneous, bool]]:
    """By name, and whether they take images rather than rows of pixels."""
    pixels = SIDE * SIDE
    convolutional = nn.Sequential(
        nn.Conv2d(1, 1, 5, bias=False), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(4, CLASSES, bias=False)
    )
    return {
        "linear factors": (Factor(pixels, CLASSES), False),
        "gain dilations": (GainDilation(pixels, CLASSES), False),
        "ReLU neurons": (Neuron(pixels, CLASSES), False),
        "convolutional": (HomogeneousNetwork(convolutional, (1, SIDE, SIDE), degree=2), True),
    }


def samples(chosen: argparse.Namespace, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Balanced by chance: the first images of the training part, and of the test part."""
    data = DATA[chosen.dataset](chosen.data_dir)
    found = {}
    for part, train_part in (("train", True), ("test", False)):
        images, labels = data.read(train_part)
        images = F.avg_pool2d(images[:count].float() / 255, 28 // SIDE)
        found[part] = images, labels[:count].long()
    return found


def run(chosen: argparse.Namespace, setting: Setting, report: Report) -> None:
    data = samples(chosen, setting.images)
    histories, lines, runs = {}, [], []
    for name, (subnetwork, takes_images) in report.track(list(subnetworks().items())):
        shaped = {part: (x if takes_images else x.flatten(1), y) for part, (x, y) in data.items()}
        x, y = shaped["train"]
        given = (subnetwork, x, y, "cross_entropy", WEIGHT, setting.stages, chosen.seed, chosen.device)
        grown = train(*given, classes=CLASSES)
        count, rounds = int(grown.history[-1]["slices"]), len(grown.history)
        start = train(*given, classes=CLASSES, grow=False, count=max(count, 1), rounds=rounds)
        scores = {
            kind: {part: f"{100 * accuracy(one.model, *shaped[part]):.1f}" for part in shaped}
            for kind, one in (("grown", grown), ("random", start))
        }
        lines += [
            row(f"{name}, nothing yet", grown.history[0]) | {"train %": "-", "test %": "-"},
            *(
                row(f"{name}, {kind}", one.history[-1]) | {f"{part} %": score for part, score in scores[kind].items()}
                for kind, one in (("grown", grown), ("random", start))
            ),
        ]
        runs += [{"network": f"{name}, grown", **one} for one in grown.history]
        runs += [{"network": f"{name}, random", **one} for one in start.history]
        histories[name] = grown.history
        report.say(f"{name}: {grown.verdict}")
    report.runs(runs)
    title = f"{setting.images} images, lambda {WEIGHT:g}: before and after growing, and as many random slices"
    report.table(title, lines)
    report.figure("growth", figures.growth(histories))
