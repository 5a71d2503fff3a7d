"""The networks, their training, and the images on which they are measured."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from shared.networks import NETWORKS, Samples, accuracy, images, train
from shared.report import Report, spread
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """How much is trained and measured: images, epochs, seeds, test images, values of kappa."""

    train_size: int | None
    epochs: int
    seeds: int
    test_size: int | None
    gradients: tuple[float, ...]


PRESETS = {
    "tiny": Setting(300, 1, 1, 40, (0.1, 0.4)),
    "small": Setting(10_000, 5, 2, 1000, (0.05, 0.1, 0.2, 0.4, 0.6)),
    "full": Setting(None, 10, 5, None, (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)),
}


@dataclass(frozen=True)
class Study:
    """Trained networks by name, one for each seed, and test images."""

    setting: Setting
    seeds: tuple[int, ...]
    networks: dict[str, list[nn.Module]]
    test: Samples

    @classmethod
    def trained(cls, chosen: argparse.Namespace, setting: Setting, report: Report) -> Study:
        test = images(chosen.data_dir, setting.test_size, dataset=chosen.dataset)
        seeds = tuple(chosen.seeds or range(setting.seeds))
        networks: dict[str, list[nn.Module]] = {}
        rows, lines = [], []
        for name, build in NETWORKS.items():
            began = time.process_time()
            for seed in seeds:
                torch.manual_seed(seed)
                network = build()
                options = {"dataset": chosen.dataset, "accelerator": chosen.device}
                train(network, chosen.data_dir, setting.epochs, setting.train_size, seed, **options)
                networks.setdefault(name, []).append(network)
            seconds = (time.process_time() - began) / len(seeds)
            found = [100 * accuracy(network, test) for network in networks[name]]
            rows += [{"network": name, "seed": seed, "accuracy": a} for seed, a in zip(seeds, found, strict=True)]
            parameters = str(sum(parameter.numel() for parameter in network.parameters()))
            line = {"network": name, "accuracy, %": spread(found, 2), "parameters": parameters}
            lines.append(line | {"CPU s": f"{seconds:.0f}"})
        report.runs(rows)
        report.table(
            f"{chosen.dataset}, {len(test[1])} test images, mean and deviation over {len(seeds)} seed(s)", lines
        )
        return cls(setting, seeds, networks, test)

    def each(self) -> list[tuple[str, int, nn.Module]]:
        """Name, seed and network of all."""
        pairs = ((name, zip(self.seeds, found, strict=True)) for name, found in self.networks.items())
        return [(name, seed, network) for name, each in pairs for seed, network in each]

    def batches(self, size: int = 200) -> Iterator[Tensor]:
        """The test images."""
        yield from self.test[0].split(size)
