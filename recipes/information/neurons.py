"""One dilation neuron of 30 inputs from 400 noisy samples: which start finds the clean function?

Root mean square distance to the noiseless outputs on fresh inputs. Residuation takes for each weight the least
difference of output and input; shifted, it has the right mean. EM is the initializer gumbel_em with 30 iterations.
Adam descends the squared error from 0 in 1500 steps by the derivative of the winner.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from shared.report import Report, spread
from torch import Tensor

from morphlightning.layers import Dilation, initialize

SCALE = 0.08


@dataclass(frozen=True)
class Setting:
    samples: int
    adam_steps: int
    seeds: int


PRESETS = {"tiny": Setting(50, 20, 1), "small": Setting(400, 1500, 5), "full": Setting(400, 1500, 30)}
NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "none": lambda rng, n: np.zeros(n),
    "Gaussian 0.1": lambda rng, n: 0.1 * rng.normal(size=n),
    "Gumbel 0.1": lambda rng, n: 0.1 * (rng.gumbel(size=n) - np.euler_gamma),
    "uniform 0.2": lambda rng, n: rng.uniform(-0.2, 0.2, n),
}


def run(chosen: argparse.Namespace, setting: Setting, seeds: tuple[int, ...], report: Report) -> None:
    rows, lines = [], []
    for noise in NOISES:
        found = [errors(noise, setting, seed) for seed in seeds]
        rows += [{"noise": noise, "seed": seed} | one for seed, one in zip(seeds, found, strict=True)]
        lines.append({"noise": noise} | {name: spread([one[name] for one in found], 3) for name in found[0]})
    report.runs(rows)
    report.table(
        f"RMSE to the clean outputs, mean and deviation over {len(seeds)} seed(s); seconds of processor", lines
    )


def errors(noise: str, setting: Setting, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    w = torch.tensor(0.3 * rng.normal(size=30))
    x, fresh = (torch.tensor(rng.random((count, 30))) for count in (setting.samples, 2000))
    y = (x + w).amax(1, keepdim=True) + torch.tensor(NOISES[noise](rng, setting.samples))[:, None]
    clean = (fresh + w).amax(1, keepdim=True)
    found = {}
    ways: dict[str, Callable[[], Dilation]] = {
        "residuation": lambda: started("residual", x, y),
        "shifted": lambda: shifted(started("residual", x, y), x, y),
        "EM": lambda: started({"name": "gumbel_em", "scale": SCALE}, x, y),
        "Adam": lambda: descended(x, y, setting.adam_steps),
    }
    for name, way in ways.items():
        began = time.process_time()
        neuron = way()
        seconds = time.process_time() - began
        with torch.no_grad():
            found[name] = float((neuron(fresh) - clean).square().mean().sqrt())
        found[f"{name}, s"] = seconds
    return found


def started(initializer: object, x: Tensor, y: Tensor) -> Dilation:
    neuron = Dilation(30, 1, initializer=initializer).double()
    initialize(neuron, [(x, y)])
    return neuron


@torch.no_grad()
def shifted(neuron: Dilation, x: Tensor, y: Tensor) -> Dilation:
    neuron.weight += (y - neuron(x)).mean()
    return neuron


def descended(x: Tensor, y: Tensor, steps: int) -> Dilation:
    neuron = Dilation(30, 1, initializer="zeros").double()
    optimizer = torch.optim.Adam(neuron.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (neuron(x) - y).square().mean().backward()
        optimizer.step()
    return neuron
