"""Five densities in the plane, with 8 layers each (20000 points to train on, 10000 to test).

The negative log-likelihood of test points in nats is at best the entropy of the density, which is known for two of
them. A Gaussian with the right mean and covariance stands beside. Round trips x, z, x are run with the points in
float32 and, through the same float32 network, in float64.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

import plots
import torch
from shared.report import Report, spread
from study import METHODS, Setting, Trained, tested, train

from morphlightning.data import ToyDensity
from morphlightning.data.toy import DENSITIES

ENTROPIES = {
    "checkerboard": math.log(8),
    "eight_gaussians": math.log(8) + 1 + math.log(2 * math.pi * 0.2**2),  # they hardly overlap
}


def run(setting: Setting, report: Report) -> None:
    steps, batch = setting.size(500, 10000, 2), setting.size(256, 512, 64)
    rows, data, learned = [], {}, defaultdict(dict)
    for density in DENSITIES:
        for name, method in METHODS.items():
            for seed in setting.seeds:
                toys = ToyDensity(density, seed=seed, batch_size=batch, test_size=setting.size(10000, 10000, 100))
                trained = train(method, toys, steps, seed, layers=setting.size(8, 8, 2))
                nll = tested(trained, toys, "test")["nll"]
                rows.append(
                    {"density": density, "method": name, "seed": seed, "steps": steps, "nll": nll}
                    | {
                        "gaussian": gaussian(toys.points("train")),
                        **trips(trained, toys.points("test")[: setting.size(500, 2000, 20)]),
                    }
                    | {"seconds": trained.seconds}
                )
                report.note(f"{density}, {name}, seed {seed}: {nll:.3f} nats, {trained.seconds:.0f} s")
                if seed == setting.seeds[0]:
                    shown = setting.size(4000, 8000, 20)
                    data[density] = toys.points("test")[:shown]
                    learned[density][name] = picture(trained, setting.size(120, 200, 8), shown)
    report.runs(rows, "runs")
    report.table("negative log-likelihood of test points (nats)", summary(rows))
    report.table("all densities: processor time and round trips", costs(rows))
    report.figure("pictures", plots.densities(data, learned))
    conclude(rows, report)


def gaussian(points: torch.Tensor) -> float:
    """The entropy of the Gaussian with the covariance of the points."""
    return float(0.5 * torch.logdet(torch.cov(points.T))) + 1 + math.log(2 * math.pi)


@torch.no_grad()
def trips(trained: Trained, x: torch.Tensor) -> dict[str, float]:
    """How far points come back from where they were, at most and of 99 %; and with points in float64, at most."""
    there_and_back = [(trained.model.inverse(trained.model.transform(p)) - p).abs().amax(1) for p in (x, x.double())]
    error, exact = there_and_back
    return {"error": float(error.max()), "error_99": float(error.quantile(0.99)), "error_64": float(exact.max())}


@torch.no_grad()
def picture(trained: Trained, side: int, shown: int) -> plots.Learned:
    line = torch.linspace(-plots.REACH, plots.REACH, side)
    density = trained.model.log_prob(torch.cartesian_prod(line, line)).exp().view(side, side)
    return plots.Learned(density, trained.model.sample(shown, torch.Generator().manual_seed(0)))


def summary(rows: list[dict]) -> list[dict[str, str]]:
    lines = []
    for density in DENSITIES:
        mine = [row for row in rows if row["density"] == density]
        line = {"density": density.replace("_", " ")}
        line |= {name: spread([r["nll"] for r in mine if r["method"] == name], 3) for name in METHODS}
        line["Gaussian"] = spread([r["gaussian"] for r in mine if r["method"] == next(iter(METHODS))], 3)
        line["entropy"] = f"{ENTROPIES[density]:.3f}" if density in ENTROPIES else ""
        lines.append(line)
    return lines


def costs(rows: list[dict]) -> list[dict[str, str]]:
    lines = []
    for name in METHODS:
        mine = [row for row in rows if row["method"] == name]
        lines.append(
            {
                "method": name,
                "steps": str(mine[0]["steps"]),
                "CPU s": f"{statistics.fmean(r['seconds'] for r in mine):.1f}",
                "round trip, 99 %": f"{max(r['error_99'] for r in mine):.1e}",
                "round trip, worst": f"{max(r['error'] for r in mine):.1e}",
                "with points in float64": f"{max(r['error_64'] for r in mine):.1e}",
            }
        )
    return lines


def conclude(rows: list[dict], report: Report) -> None:
    """Which method has the best mean likelihood on each density."""
    best = defaultdict(list)
    for density in DENSITIES:
        means = {
            name: statistics.fmean(r["nll"] for r in rows if (r["density"], r["method"]) == (density, name))
            for name in METHODS
        }
        best[min(means, key=means.get)].append(density.replace("_", " "))
    told = "; ".join(f"{name}: {', '.join(names)}" for name, names in best.items())
    report.say(f"The best test likelihood is that of {told}.")
