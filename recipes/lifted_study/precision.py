"""The same 50 iterations in float32, in float64, and in float32 with products rounded to bfloat16 (autocast).

Sums over samples and least squares stay in float32 under autocast. One hidden layer, 1000 images, mu 3, ridge 100, 1.
"""

from __future__ import annotations

import torch
from problems import Problem
from report import Report
from study import Setting
from torch import Tensor, nn
from training import Run, Step, Way, badmm, measure, mm, network

RIDGE = {"ridge": 100.0, "ridge_2": 1.0}
PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16 products": torch.float32}


def autocast(way: Way) -> Way:
    """It with products in bfloat16."""

    def rounded(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        with torch.autocast("cpu", torch.bfloat16):
            step = way(network, problem, seed)

        def iterate() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                step()

        return iterate

    return rounded


def run(setting: Setting, report: Report) -> None:
    size, last, seed = setting.size(1000, 100), setting.size(50, 10), setting.seeds[0]
    pixels, hidden = setting.images.pixels, setting.size(64, 16)
    at, lines, runs = sorted({min(10, last), last}), [], []
    largest = 0.0
    for method, way in {"BADMM": badmm(**RIDGE), "lifted MM": mm(**RIDGE)}.items():
        exact: Tensor | None = None
        for precision, dtype in PRECISIONS.items():
            problem = setting.images.denoising(size, seed, dtype=dtype)
            net = network((pixels, hidden, pixels), seed).to(dtype)
            points = measure(autocast(way) if "bfloat16" in precision else way, net, problem, at)
            runs.append(Run(method, precision, seed, points))
            weights = torch.cat([parameter.detach().double().flatten() for parameter in net.parameters()])
            exact = weights if exact is None else exact
            off = float((weights - exact).norm() / exact.norm())
            largest = max(largest, abs(points[-1].score - runs[-1 - list(PRECISIONS).index(precision)].at(last).score))
            cells = {f"@{k}": f"{runs[-1].at(k).loss:.6f} / {runs[-1].at(k).score:.3f}" for k in at}
            lines.append({"method": method, "precision": precision, **cells, "weights off by": f"{off:.1e}"})
    report.runs([row for one in runs for row in one.rows()], "runs")
    report.table(f"MSE / PSNR after iterations, weights relative to those in float64; seed {seed}", lines)
    report.say(f"After {last} iterations the held-out PSNR differs from that in float64 by at most {largest:.3f} dB.")
