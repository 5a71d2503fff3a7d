"""Three networks side by side: what their weights and activations know, which taps win, and whether there is a bound.

bits of weights      KL of Gaussian noise around the weights to a Gaussian prior, where the noise costs one point of
                     accuracy: how precisely the weights must be known
bits of activations  what the last hidden layer tells about an image through noise that costs one point of accuracy
winning taps         taps of maxima and minima that decide any output of any training image
bound                PAC-Bayes, by margins and winning taps; of networks with linear layers nothing was derived
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import plots
import torch
from bound import batches, margins
from measures import bits_of_activations, bits_of_weights
from shared.networks import NETWORKS, Samples, accuracy, images, train
from shared.report import Report, spread
from torch import nn

from morphlightning.errors import ConfigError, NotCertifiable
from morphlightning.guarantees.information import PACBayes, TapChain, evidence
from morphlightning.metrics import WinningTaps

LAST_HIDDEN = {"morphological": 4, "ReLU MLP": 4, "CNN": 6}
DROP = 0.01


@dataclass(frozen=True)
class Setting:
    train_size: int | None
    epochs: int
    probe: int
    test_size: int | None
    seeds: int


PRESETS = {
    "tiny": Setting(240, 1, 60, 60, 1),
    "small": Setting(10_000, 5, 1000, None, 1),
    "full": Setting(None, 10, 5000, None, 5),
}


def run(chosen: argparse.Namespace, setting: Setting, seeds: tuple[int, ...], report: Report) -> None:
    test = images(chosen.data_dir, setting.test_size, dataset=chosen.dataset)
    seen = images(chosen.data_dir, setting.train_size, dataset=chosen.dataset, part="train")
    probe = (seen[0][: setting.probe], seen[1][: setting.probe])
    rows, lines, found, reasons = [], [], {}, []
    for name in NETWORKS:
        ones = []
        for seed in seeds:
            torch.manual_seed(seed)
            network = NETWORKS[name]()
            options = {"dataset": chosen.dataset, "accelerator": chosen.device}
            train(network, chosen.data_dir, setting.epochs, setting.train_size, seed, **options)
            began = time.process_time()
            one, reason = measured(network, LAST_HIDDEN[name], probe, seen)
            ones.append({"test error, %": 100 * (1 - accuracy(network, test))} | one)
            ones[-1]["CPU s"] = time.process_time() - began
        rows += [{"network": name, "seed": seed} | one for seed, one in zip(seeds, ones, strict=True)]
        lines.append({"network": name} | line(ones))
        found[name] = (margins(network.double(), seen), margins(network, test))
        reasons += [f"{name}: {reason}"] if reason else []
    report.runs(rows)
    about = f"{chosen.dataset}, trained on {len(seen[1])} images, {len(test[1])} test images, {len(seeds)} seed(s)"
    report.table(about, lines)
    for reason in reasons:
        report.say(f"No bound. {reason}")
    report.figure("margins", plots.margins(found))


def measured(network: nn.Sequential, layer: int, probe: Samples, seen: Samples) -> tuple[dict[str, float], str]:
    """All numbers of one network, and why there is no bound, or nothing."""
    weights, noise = bits_of_weights(network, probe, DROP)
    activations = bits_of_activations(network, layer, probe, DROP)
    one = {
        "weights": float(sum(p.numel() for p in network.parameters())),
        "kbit of weights": weights / 1000,
        "noise of weights": noise,
        "bits of activations, Gumbel": activations["gumbel"],
        "bits of activations, Gaussian": activations["gaussian"],
    }
    try:
        metric = WinningTaps(network)
    except ConfigError:
        pass
    else:
        for x, _ in batches(seen, 500):
            metric.update(x)
        counts = metric.compute()
        one |= {"winning taps": float(counts["all"]), "winning, %": 100 * float(counts["all/share"])}
    try:
        chain = TapChain(network)
    except NotCertifiable as refusal:
        return one, str(refusal)
    bound = PACBayes().bound(chain, evidence(chain, batches(seen, 500)))
    return one | {"Gibbs bound": bound.value, "kbit of the bound": bound.bits / 1000}, ""


def line(ones: list[dict[str, float]]) -> dict[str, str]:
    digits = {"test error, %": 2, "noise of weights": 4, "winning, %": 1, "Gibbs bound": 3}
    columns = [
        "test error, %",
        "weights",
        "kbit of weights",
        "noise of weights",
        "bits of activations, Gumbel",
        "bits of activations, Gaussian",
        "winning taps",
        "winning, %",
        "Gibbs bound",
        "kbit of the bound",
        "CPU s",
    ]
    return {
        name: spread([one[name] for one in ones], digits.get(name, 0)) if name in ones[0] else "-" for name in columns
    }
