"""Noisy samples of a function of one variable, fitted by sums of c max(s x + w, v), the square loss, half squares.

The polar is computed exactly, by projections onto cones, so that every gap is certified and none is loose. "grown"
starts with no slice; "random" trains as many slices from random starts for as long.
"""

from __future__ import annotations

import argparse

import figures
import torch
from growing import Stages, train
from shared.report import Report
from tables import row

from morphlightning.guarantees.optimality import GainDilation

WEIGHT, SAMPLES = 0.0125, 24
PRESETS = {
    "tiny": Stages(slices=2, steps=20, starts=2, search=5),
    "small": Stages(slices=6, steps=600, starts=8, search=50),
    "full": Stages(slices=12, steps=5000, starts=16, search=150),
}
RANDOM_STARTS = {"tiny": 1, "small": 4, "full": 10}


def run(chosen: argparse.Namespace, stages: Stages, report: Report) -> None:
    generator = torch.Generator().manual_seed(1 + chosen.seed)
    x = (4 * torch.rand(SAMPLES, generator=generator) - 2).sort().values
    y = (2.2 * x).sin() + 0.3 * x + 0.1 * torch.randn(SAMPLES, generator=generator)
    pairs = torch.stack([x, torch.zeros_like(x)], 1)
    given = (GainDilation(2), pairs, y[:, None], "squared_error", WEIGHT, stages)
    grown = train(*given, chosen.seed, chosen.device)
    count = int(grown.history[-1]["slices"])
    rounds = len(grown.history)
    rows = [row("grown", one) for one in grown.history]
    runs = [{"network": "grown", **one} for one in grown.history]
    stuck, worst = None, 0.0
    for seed in range(RANDOM_STARTS[chosen.preset]):
        start = train(*given, seed, chosen.device, grow=False, count=max(count, 1), rounds=rounds)
        rows.append(row(f"random {seed}", start.history[-1]))
        runs += [{"network": f"random {seed}", **one} for one in start.history]
        if (excess := start.history[-1]["excess_certified"]) >= worst:
            stuck, worst = start.model, excess
    report.runs(runs)
    report.table("One variable, exact polar", rows)
    report.say(f"grown: {grown.verdict}")
    grid = torch.linspace(-2.2, 2.2, 400)
    inputs = torch.stack([grid, torch.zeros_like(grid)], 1)
    with torch.no_grad():
        fits = {"grown": grown.model(inputs)[:, 0]}
        if stuck is not None:
            fits = {"worst random start": stuck(inputs)[:, 0], **fits}
    report.figure("growth", figures.curves(x, y, grid, fits, grown.history))
