"""Train a recipe for some seeds, test it, and write what came out beside it.

    python recipes/run.py digits_classifier
    python recipes/run.py mnist_classifier --seeds 0 1 2
    python recipes/run.py mnist_classifier --data.init_args.data_dir /path/to/mnist --trainer.max_epochs 2

Unknown arguments go to the command line of morphlightning (see `morphlightning fit --help`). Each seed's run, with its
checkpoints, TensorBoard logs and figures, lies in runs/; metrics, versions, machine, time and memory go to
recipes/results/<recipe>/<date>-seed<N>.json and a table of all seeds to <date>.csv. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from morphlightning.cli.training import TrainingCLI, process_arguments

RECIPES = Path(__file__).parent
PACKAGES = ("morphlightning", "torch", "lightning", "torchmetrics", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RECIPES / "results", help="where results are written")
    chosen, extra = parser.parse_known_args()
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = chosen.results / chosen.recipe
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in chosen.seeds:
        row = train_and_test(chosen.recipe, seed, extra, f"runs/{chosen.recipe}-{stamp}-seed{seed}")
        with open(folder / f"{stamp}-seed{seed}.json", "x") as file:
            json.dump({**row, **facts()}, file, indent=2)
        rows.append({"seed": seed, "seconds": row["seconds"], **row["metrics"]})
    with open(folder / f"{stamp}.csv", "x", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    show(chosen.recipe, rows)
    print(f"results: {folder}/{stamp}*   runs: runs/{chosen.recipe}-{stamp}-seed*")


def train_and_test(recipe: str, seed: int, extra: list[str], run: str) -> dict[str, Any]:
    """One run: its test metrics, configuration, time and size."""
    arguments = ["--config", str(RECIPES / f"{recipe}.yaml"), "--seed_everything", str(seed), "--run", run, *extra]
    with process_arguments(arguments):
        cli = TrainingCLI(run=False)
    began = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule)
    seconds = time.perf_counter() - began
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", weights_only=True, verbose=False)
    return {
        "recipe": recipe,
        "seed": seed,
        "arguments": extra,
        "metrics": {name.removeprefix("test/"): round(value, 6) for name, value in metrics.items()},
        "seconds": round(seconds, 1),
        "epochs": cli.trainer.current_epoch,
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "run": run,
        "config": (Path(run) / "config.yaml").read_text() if (Path(run) / "config.yaml").exists() else None,
    }


def facts() -> dict[str, Any]:
    """Where and with what a result was made."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RECIPES)
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": " ".join(["python", *sys.argv]),
    }


def show(recipe: str, rows: list[dict[str, Any]]) -> None:
    """Print the metrics of all seeds, with mean and standard deviation."""
    table = Table(title=f"{recipe}: test set", box=None, header_style="bold")
    columns = list(rows[0])
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{row[column]:g}" for column in columns))
    if len(rows) > 1:
        values = {column: [row[column] for row in rows] for column in columns[1:]}
        table.add_row("mean", *(f"{statistics.mean(v):g}" for v in values.values()), style="bold")
        table.add_row("std", *(f"{statistics.stdev(v):.2g}" for v in values.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
