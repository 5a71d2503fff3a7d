"""A max-plus network trained for its PAC-Bayes bound.

Images are averaged over squares of four by four pixels, then meet a signed dilation and a signed erosion. Training asks
for margins of 0.1; afterwards the taps that win on few training images are masked, as many as make the bound best. All
training images are used, and the bound is a statement about fresh ones that holds with probability 0.95 over the draw
of the training images. Test images have no part in it. The bound pays for 64 designs, which is more than the
combinations of width and pooling that were ever tried on MNIST for this recipe.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import plots
import torch
from shared.networks import DATA, Samples, images
from shared.report import Report, spread
from torch import Tensor, nn

from morphlightning.guarantees.information import Evidence, PACBayes, RiskBound, TapChain, evidence, keep_winners
from morphlightning.guarantees.robustness import margin
from morphlightning.layers import MeanShift, Shift, SoftSignedDilation, SoftSignedErosion
from morphlightning.models.losses import MarginHinge

HOW = PACBayes(alternatives=64)
FEWEST = (1, 10, 30, 100, 300)
"""Wins of a tap that stays; the posterior may be chosen at no price."""


@dataclass(frozen=True)
class Setting:
    width: int
    epochs: int
    batch: int
    train_size: int | None
    test_size: int | None
    draws: int
    seeds: int


PRESETS = {
    "tiny": Setting(4, 1, 32, 240, 100, 2, 1),
    "small": Setting(40, 20, 256, None, None, 20, 3),
    "full": Setting(40, 60, 256, None, None, 100, 10),
}


@dataclass(frozen=True)
class Certified:
    """A network with its bounds, and what test images say."""

    chain: TapChain
    seen: Evidence
    gibbs: RiskBound
    deterministic: RiskBound
    seconds: float


def run(chosen: argparse.Namespace, setting: Setting, seeds: tuple[int, ...], report: Report) -> None:
    train, test = (
        all_training_images(chosen, setting),
        images(chosen.data_dir, setting.test_size, dataset=chosen.dataset),
    )
    rows, networks = [], []
    for seed in report.track(seeds):
        one = certified(train, setting, seed)
        networks.append(one)
        rows.append({"seed": seed} | row(one, test, setting.draws, seed))
    report.runs(rows)
    named = {name: [float(one[name]) for one in rows] for name in rows[0] if name != "seed"}
    digits = {name: 0 if min(values) >= 10 else 4 for name, values in named.items()}
    report.table(
        f"{chosen.dataset}, {len(train[1])} training images, delta 0.05; mean and deviation over {len(seeds)} seed(s)",
        [{"what": name, "value": spread(values, digits[name])} for name, values in named.items()],
    )
    worst = max(float(one["Gibbs bound"]) for one in rows)
    report.say(
        f"With confidence 0.95 in each, the drawn networks err on at most {100 * worst:.1f} % of fresh images (worst "
        f"seed). On the test images they err on {100 * max(named['test error of draws']):.1f} % at most."
    )
    report.figure("margins", plots.margins_and_bounds(networks[0], HOW, margins(networks[0].chain, test)))


def certified(train: Samples, setting: Setting, seed: int) -> Certified:
    """Train, mask, bound."""
    began = time.process_time()
    network = fitted(train, setting, seed)
    best, taps = None, None
    for fewest in FEWEST:
        if taps is not None:
            keep_winners(network, taps, fewest)
        chain = TapChain(network)
        seen = evidence(chain, batches(train, 500))
        taps = seen.taps
        gibbs, deterministic = (HOW.bound(chain, seen, kind) for kind in ("gibbs", "deterministic"))
        if best is None or gibbs.value < best.gibbs.value:
            best = Certified(chain, seen, gibbs, deterministic, 0.0)
    assert best is not None
    return replace(best, seconds=time.process_time() - began)


def fitted(train: Samples, setting: Setting, seed: int) -> nn.Sequential:
    """The trained network, hard, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    front = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), Shift(0.5))
    pixels, width = (train[0].shape[-1] // 4) ** 2, setting.width
    soft = nn.Sequential(SoftSignedDilation(pixels, width), MeanShift(width), SoftSignedErosion(width, 10))
    for layer in (soft[0], soft[2]):
        distances(layer, generator)
    x, y = front(train[0]), train[1]
    loss = MarginHinge(eps=0.05, cross_entropy=0.5)
    optimizer = torch.optim.Adam([*soft.parameters(), *loss.parameters()], betas=(0.9, 0.99))
    steps = setting.epochs * (len(x) // setting.batch)
    for step, rows in enumerate(orders(len(x), setting, generator)):
        progress = step / steps
        optimizer.param_groups[0]["lr"] = 0.015 * (1 + math.cos(math.pi * progress))
        loss.set_cross_entropy(0.5 * 0.1**progress)
        for layer in (soft[0], soft[2]):
            layer.set_beta(10 * 12**progress)
        optimizer.zero_grad()
        loss(soft(x[rows]), y[rows]).backward()
        optimizer.step()
    return nn.Sequential(*front, soft[0].harden(), soft[1], soft[2].harden()).eval()


@torch.no_grad()
def distances(layer: Any, generator: torch.Generator) -> None:
    """Start at sup-norm distances from points near 0: b = -a."""
    a = 0.1 * torch.randn(layer.a.shape, generator=generator)
    layer.weight.copy_(torch.cat([a, -a], 1))


def orders(count: int, setting: Setting, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one batch after another, in a new order in each epoch."""
    for _ in range(setting.epochs):
        whole = count // setting.batch * setting.batch
        yield from torch.randperm(count, generator=generator)[:whole].split(setting.batch)


def batches(samples: Samples, size: int) -> Iterator[Samples]:
    return zip(*(part.split(size) for part in samples), strict=True)  # type: ignore[return-value]


def all_training_images(chosen: argparse.Namespace, setting: Setting) -> Samples:
    data = DATA[chosen.dataset](chosen.data_dir, val_fraction=0.0, train_size=setting.train_size)
    data.prepare_data()
    data.setup("fit")
    found = data.training_sets()[0]
    rows = range(len(found))
    x = found.clean(rows)
    return x, found.targets(rows, x[:1])


@torch.no_grad()
def margins(network: nn.Module, samples: Samples) -> Tensor:
    return torch.cat([margin(network(x.double()), y) for x, y in batches(samples, 500)])


def row(one: Certified, test: Samples, draws: int, seed: int) -> dict[str, float]:
    """What one network came to."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [float((margins(one.gibbs.draw(one.chain, generator), test) <= 0).double().mean()) for _ in range(draws)]
    taps, seen = sum(int(layer.mask.sum()) for layer in one.chain.layers.values()), one.seen
    return {
        "Gibbs bound": one.gibbs.value,
        "deterministic bound": one.deterministic.value,
        "test error of draws": sum(drawn) / len(drawn),
        "test error": float((margins(one.chain, test) <= 0).double().mean()),
        "training error": seen.errors / seen.samples,
        "share of margins up to gamma": one.gibbs.empirical,
        "gamma": one.gibbs.gamma,
        "weights": sum(layer.weight.numel() for layer in one.chain.layers.values()),
        "taps left": taps,
        "winning taps": sum(int(found.winning.sum()) for found in seen.taps.values()),
        "bits": one.gibbs.bits,
        "bits, deterministic": one.deterministic.bits,
        "CPU s": one.seconds,
    }
