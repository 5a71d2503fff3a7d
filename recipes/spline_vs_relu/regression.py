"""1-Lipschitz networks of three hidden layers learn 1-Lipschitz functions of one variable with many kinks.

A target on [-1, 1] is piecewise linear with kinks at random places; a piece has slope 1 or -1 with probability 0.7,
else a uniform slope in [-1, 1]. Networks see samples at random places, exact ones or with Gaussian noise of 0.05; the
error is the root mean square difference from the target on a fine grid. Each seed has a target, samples and initial
weights of its own. "GroupSort, larger" is wider, to have as many parameters as networks with splines, and trains for
three times as many steps, which takes more seconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import plots
import torch
from activations import lipschitz
from shared.report import Report, spread
from torch import Tensor
from torch.nn.functional import mse_loss
from training import RATES, choose, fit, parameters

from morphlightning.lipschitz import LipschitzNetwork

LIMIT = 1.0
NOISE = {"exact samples": 0.0, "noisy samples": 0.05}


@dataclass(frozen=True)
class Setting:
    kinks: int
    samples: int
    width: int
    wide: int
    steps: int
    more_steps: int
    seeds: int


PRESETS = {
    "tiny": Setting(kinks=6, samples=50, width=4, wide=12, steps=20, more_steps=60, seeds=2),
    "small": Setting(kinks=24, samples=500, width=16, wide=28, steps=500, more_steps=1500, seeds=5),
    "full": Setting(kinks=24, samples=500, width=16, wide=28, steps=3000, more_steps=9000, seeds=10),
}


def target(kinks: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A 1-Lipschitz function on [-1, 1] of mean about 0."""
    generator = torch.Generator().manual_seed(seed)
    inner = (2 * torch.rand(kinks, generator=generator, dtype=torch.float64) - 1).sort().values
    knots = torch.cat([inner.new_tensor([-1.0]), inner, inner.new_tensor([1.0])])
    uniform = 2 * torch.rand(kinks + 1, generator=generator, dtype=torch.float64) - 1
    steep = torch.rand(kinks + 1, generator=generator) < 0.7
    slopes = torch.where(steep, uniform.sign(), uniform)
    values = torch.cat([inner.new_zeros(1), (slopes * knots.diff()).cumsum(0)])
    values = values - values.mean()

    def function(x: Tensor) -> Tensor:
        piece = torch.searchsorted(knots, x.double().contiguous()).clamp(1, kinks + 1) - 1
        return (values[piece] + slopes[piece] * (x - knots[piece])).to(x.dtype)

    return function


@dataclass
class Fit:
    error: float
    seconds: float
    network: LipschitzNetwork


class Contestant(NamedTuple):
    activation: object
    width: int
    steps: int


def contestants(setting: Setting) -> dict[str, Contestant]:
    found = {name: Contestant(one, setting.width, setting.steps) for name, one in lipschitz(LIMIT).items()}
    found["GroupSort, larger"] = Contestant(found["GroupSort"].activation, setting.wide, setting.more_steps)
    return found


def train(one: Contestant, rate: float, noise: float, seed: int, setting: Setting) -> Fit:
    function, generator = target(setting.kinks, seed), torch.Generator().manual_seed(seed + 1)
    x = 2 * torch.rand(setting.samples, 1, generator=generator) - 1
    y = function(x) + noise * torch.randn(x.shape, generator=generator)
    torch.manual_seed(seed)
    network = LipschitzNetwork((1,), (one.width,) * 3, 1, activation=one.activation)
    batches: Iterable[tuple[Tensor, Tensor]] = repeat((x, y), one.steps)
    seconds = fit(network, mse_loss, batches, rate, one.steps)
    grid = torch.linspace(-1, 1, 2001)[:, None]
    with torch.no_grad():
        error = mse_loss(network(grid), function(grid)).sqrt().item()
    return Fit(error, seconds, network)


def run(chosen: argparse.Namespace, setting: Setting, seeds: Iterable[int], report: Report) -> None:
    seeds, rows, lines, pictures = list(seeds), [], [], {}
    errors: dict[str, dict[str, list[float]]] = {kind: {} for kind in NOISE}
    for name, contestant in report.track(list(contestants(setting).items())):
        line = {"activation": name}
        for kind, noise in NOISE.items():
            rate, tried = choose(lambda r, s: train(contestant, r, noise, s, setting).error)  # noqa: B023
            fits = [train(contestant, rate, noise, seed, setting) for seed in seeds]
            errors[kind][name] = [one.error for one in fits]
            rows += [
                {"activation": name, "samples": kind, "rate": rate, "seed": seed, "error": one.error,
                 "constant": one.network.lipschitz_spec().constant, "seconds": one.seconds}
                for seed, one in zip(seeds, fits, strict=True)
            ]  # fmt: skip
            rows += [
                {"activation": name, "samples": kind, "rate": r, "seed": "tuning", "error": e} for r, e in tried.items()
            ]
            line[kind] = spread([1e3 * error for error in errors[kind][name]], 1)
            line[f"rate, {kind.split()[0]}"] = f"{rate:g}"
            pictures[kind, name] = fits[0].network
        constant = max(row["constant"] for row in rows if row["activation"] == name and "constant" in row)
        line |= {"largest constant": f"{constant:.6f}", "parameters": str(parameters(fits[0].network))}
        lines.append(line | {"CPU s": f"{statistics.fmean(one.seconds for one in fits):.1f}"})
    report.runs(rows)
    report.table(f"Error in thousandths, mean and deviation over {len(seeds)} seeds; rates of {RATES}", lines)
    report.figure("fits", plots.fits(pictures, target(setting.kinks, seeds[0])))
    report.figure("errors", plots.errors(errors))
    conclude(errors, report)


def conclude(errors: dict[str, dict[str, list[float]]], report: Report) -> None:
    for kind, found in errors.items():
        means = {name: statistics.fmean(values) for name, values in found.items()}
        others = {name: mean / means["spline"] for name, mean in means.items() if name != "spline"}
        won = "win" if min(others.values()) > 1 else "DO NOT win"
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in others.items())
        report.say(f"{kind}: splines {won}. Errors of the others over theirs: {ratios}.")
