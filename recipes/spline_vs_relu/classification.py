"""The same networks classify images: free, or with each layer over its norm, which certifies a Lipschitz constant of 1.

The certified radius of an image that is classified rightly is its margin over sqrt(2) times the constant of the
network, of wrongly classified ones 0: no change of the image of smaller l2 norm can change the class (pixels lie in
[0, 1]). Free networks have the product of the constants of their layers. Networks of constant 1 train with the
cross-entropy of 10 times their outputs, whose margins are small; learning rates are chosen by the loss on validation
images after fewer steps, with seeds that serve nothing else.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import plots
import torch
from activations import FREE, lipschitz
from shared.report import Report, spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import RATES, choose, fit, parameters

from morphlightning.data import MNIST, FashionMNIST
from morphlightning.lipschitz import LipschitzNetwork, certify

TEMPERATURE = {"constant 1": 10.0, "free": 1.0}
RADII = (0.5, 1.0)
DATA = {"mnist": MNIST, "fashion": FashionMNIST}
Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    train_size: int | None
    test_size: int | None
    tuning_steps: int
    steps: int
    batch: int
    seeds: int


PRESETS = {
    "tiny": Setting((2,), (8,), 300, 200, 4, 8, 32, 1),
    "small": Setting((), (256, 128), None, None, 200, 1000, 256, 2),
    "full": Setting((32, 64), (256,), None, None, 2000, 8000, 256, 5),
}


@dataclass
class Trained:
    network: nn.Module
    seconds: float
    constant: float
    margins: Tensor
    """Of test images: the output of the class over the largest of the others."""

    @property
    def accuracy(self) -> float:
        return float((self.margins > 0).double().mean())

    @property
    def radii(self) -> Tensor:
        return self.margins.clamp_min(0) / (2**0.5 * self.constant)


def free_network(
    in_shape: tuple[int, ...], hidden: tuple[int, ...], channels: tuple[int, ...], activation: Callable[..., nn.Module]
) -> nn.Sequential:
    """As a LipschitzNetwork, with torch's linear layers and convolutions."""
    network, before = nn.Sequential(), in_shape[0]
    for width in channels:
        network.extend([nn.Conv2d(before, width, 3, 2, 2), activation(channels=width, channel_dim=1)])
        before = width
    with torch.no_grad():
        before = network(torch.zeros(1, *in_shape)).numel()
    network.append(nn.Flatten())
    for width in hidden:
        network.extend([nn.Linear(before, width), activation(channels=width, channel_dim=-1)])
        before = width
    return network.append(nn.Linear(before, 10))


def margins(network: nn.Module, samples: Samples) -> Tensor:
    found = []
    for x, y in zip(*(part.split(1000) for part in samples), strict=True):
        with torch.no_grad():
            outputs = network(x)
        right = outputs.gather(1, y[:, None])[:, 0]
        others = outputs.scatter(1, y[:, None], -torch.inf).amax(1)
        found.append((right - others).cpu())
    return torch.cat(found)


def batches(samples: Samples, size: int, steps: int, seed: int) -> Iterator[Samples]:
    """So many batches, in a new order in each epoch."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    x, y = samples
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        taken, order = order[:size].to(x.device), order[size:]
        yield x[taken], y[taken]


class Contest:
    """Trains networks of one preset on one data set."""

    def __init__(self, chosen: argparse.Namespace, setting: Setting) -> None:
        data = DATA[chosen.dataset](chosen.data_dir, val_fraction=1 / 12, train_size=setting.train_size)
        data.prepare_data()
        data.setup()
        parts = [*data.training_sets(), data.test_set()]
        rows = [range(len(part))[: setting.test_size if k else None] for k, part in enumerate(parts)]
        self.train, self.validation, self.test = (
            (part.clean(r).to(chosen.device), part.targets(r, part.clean(r[:1])).to(chosen.device))
            for part, r in zip(parts, rows, strict=True)
        )
        self.setting, self.device, self.in_shape = setting, chosen.device, tuple(self.train[0].shape[1:])

    def fitted(self, kind: str, activation: object, rate: float, seed: int, steps: int) -> tuple[nn.Module, float]:
        torch.manual_seed(seed)
        hidden, channels = self.setting.hidden, self.setting.channels
        if kind == "free":
            network: nn.Module = free_network(self.in_shape, hidden, channels, activation)
        else:
            network = LipschitzNetwork(self.in_shape, hidden, 10, channels, activation)
        network.to(self.device)
        taken = batches(self.train, self.setting.batch, steps, seed)
        return network, fit(network, self.loss(kind), taken, rate, steps)

    @staticmethod
    def loss(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda outputs, labels: cross_entropy(TEMPERATURE[kind] * outputs, labels)

    def validation_loss(self, kind: str, activation: object, rate: float, seed: int) -> float:
        network, _ = self.fitted(kind, activation, rate, seed, self.setting.tuning_steps)
        with torch.no_grad():
            return self.loss(kind)(network(self.validation[0]), self.validation[1]).item()

    def trained(self, kind: str, activation: object, rate: float, seed: int) -> Trained:
        network, seconds = self.fitted(kind, activation, rate, seed, self.setting.steps)
        return Trained(network, seconds, certify(network).constant, margins(network, self.test))


def run(chosen: argparse.Namespace, setting: Setting, seeds: Iterable[int], report: Report) -> None:
    contest, seeds, rows, lines = Contest(chosen, setting), list(seeds), [], []
    networks = [(kind, name) for kind, table in contestants().items() for name in table]
    radii: dict[str, dict[str, Tensor]] = {kind: {} for kind in contestants()}
    for kind, name in report.track(networks):
        activation = contestants()[kind][name]
        rate, tried = choose(lambda r, s: contest.validation_loss(kind, activation, r, s))  # noqa: B023
        found = [contest.trained(kind, activation, rate, seed) for seed in seeds]
        rows += [
            {"network": kind, "activation": name, "rate": r, "seed": "tuning", "loss": e} for r, e in tried.items()
        ]
        rows += [row(one) | {"network": kind, "activation": name, "rate": rate, "seed": seed}
                 for seed, one in zip(seeds, found, strict=True)]  # fmt: skip
        lines.append({"network": kind, "activation": name, "rate": f"{rate:g}"} | line(found))
        radii[kind][name] = found[0].radii
    report.runs(rows)
    about = f"{setting.steps} steps of {setting.batch}, mean and deviation over {len(seeds)} seeds; rates of {RATES}"
    report.table(f"{chosen.dataset}, {len(contest.test[1])} test images; {about}", lines)
    report.figure("radii", plots.certified(radii))


def row(one: Trained) -> dict[str, float]:
    certified = {f"certified at {r}": float((one.radii > r).double().mean()) for r in RADII}
    found = {"accuracy": one.accuracy, "radius": float(one.radii.mean()), "constant": one.constant}
    return found | certified | {"seconds": one.seconds}


def line(found: list[Trained]) -> dict[str, str]:
    shares = {f"within {r}, %": [100 * float((one.radii > r).double().mean()) for one in found] for r in RADII}
    return {
        "accuracy, %": spread([100 * one.accuracy for one in found], 2),
        **{name: spread(share, 1) for name, share in shares.items()},
        "mean radius": f"{statistics.fmean(float(one.radii.mean()) for one in found):.4f}",
        "constant": f"{max(one.constant for one in found):.6g}",
        "parameters": str(parameters(found[0].network)),
        "CPU s": f"{statistics.fmean(one.seconds for one in found):.0f}",
    }


def contestants() -> dict[str, dict[str, object]]:
    return {"constant 1": lipschitz(2.0, "absolute"), "free": FREE}
