"""The 8x8 digits of scikit-learn with 17 grey levels, dequantized (1294 to train on, 359 to test).

Bits per dimension bound what a test image costs; equally probable grey levels cost log2(17) = 4.087. The best of the
checkpoints is not chosen: the last step counts.
"""

from __future__ import annotations

import math
from collections import defaultdict

import plots
import torch
from shared.report import Report, spread
from study import METHODS, Setting, tested, train

from morphlightning.data import Digits

SHAPE, LEVELS, SHOWN = (1, 8, 8), 17, 14


def run(setting: Setting, report: Report) -> None:
    steps = setting.size(250, 250, 2)  # 25 epochs; with 80 all of them overfit
    rows, sheets = [], {}
    for name, method in METHODS.items():
        if method.settings.get("kind") == "residual":
            continue  # its exact log-determinant takes 64 backward passes a step
        for seed in setting.seeds:
            data = Digits(batch_size=128, seed=seed, task="reconstruction")
            trained = train(method, data, steps, seed, in_shape=SHAPE, levels=LEVELS, layers=6, bins=8)
            bits = {stage: tested(trained, data, stage)["bits_per_dim"] for stage in ("val", "test")}
            rows.append({"method": name, "seed": seed, **bits, "steps": steps, "seconds": trained.seconds})
            report.note(f"{name}, seed {seed}: {bits['test']:.3f} bits per dimension, {trained.seconds:.0f} s")
            if seed == setting.seeds[0]:
                sheets[name] = trained.model.sample(SHOWN, torch.Generator().manual_seed(0))
    data.setup("test")
    sheets = {"data": next(iter(data.test_dataloader()))[0][:SHOWN]} | sheets
    report.runs(rows, "runs")
    report.table("bits per dimension", summary(rows))
    report.figure("sheet", plots.sheet(sheets))
    report.say(f"Equally probable grey levels cost {math.log2(LEVELS):.3f} bits per dimension.")


def summary(rows: list[dict]) -> list[dict[str, str]]:
    found = defaultdict(list)
    for row in rows:
        found[row["method"]].append(row)
    return [
        {
            "method": name,
            "validation": spread([r["val"] for r in mine], 3),
            "test": spread([r["test"] for r in mine], 3),
            "CPU s": spread([r["seconds"] for r in mine], 1),
        }
        for name, mine in found.items()
    ]
