"""How many filters a max-plus head needs: accuracy against size, pruned by wins and by magnitude.

    python recipes/sparsity_curve.py
    python recipes/sparsity_curve.py --data-dir /path/to/mnist --seeds 0 1 2
    python recipes/sparsity_curve.py --filters 64 --epochs 2

For each seed it trains linear filters with a max-plus head, and an MLP with as many ReLU units, on MNIST where its
files are there, else on scikit-learn's digits. Then three ways to prune compete, none followed by more training:

    wins         max-plus: the filters that win more than a share of a class's training samples (structure.prune_head)
    norm         max-plus: as many filters, those of the largest L2 norm
    ReLU norm    MLP: as many units, those of the largest L2 norm of their incoming weights

Beside them stand both networks trained anew with as many filters as threshold 0 keeps ("small", "ReLU small").

A CSV of all points, a JSON of versions, machine and command, and a figure go to recipes/results/sparsity_curve/.
Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from run import facts
from torch import Tensor, nn

from morphlightning import MorphologicalClassifier, structure
from morphlightning.data import MNIST, Digits, ImageDataModule
from morphlightning.errors import DataError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

THRESHOLDS = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
STYLES = {
    "wins": ("#1f6fb4", "o", "max-plus, filters that win"),
    "norm": ("#e08a1e", "s", "max-plus, largest filters"),
    "ReLU norm": ("#8c8c8c", "^", "ReLU MLP, largest units"),
    "small": ("#0b3d66", "D", "max-plus, trained with so few"),
    "ReLU small": ("#4d4d4d", "D", "ReLU MLP, trained with so few"),
}


@dataclass(frozen=True)
class Point:
    """One pruned network; ``threshold`` is empty where the number of filters was prescribed."""

    seed: int
    method: str
    threshold: float | None
    filters: int
    parameters: int
    train_accuracy: float
    test_accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where MNIST is; default: data, or digits if it is not there")
    parser.add_argument("--digits", action="store_true", help="digits, even where MNIST is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--filters", type=int, default=150)
    parser.add_argument("--epochs", type=int, help="default: 4 for MNIST, 20 for digits")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "sparsity_curve")
    chosen = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for advice in (".*does not have many workers.*", ".*LeafSpec.*", ".*Total length of `list`.*"):
        warnings.filterwarnings("ignore", advice)
    console, began, points = Console(), time.perf_counter(), []
    console.width = max(console.width, 100)
    data = data_of(chosen.data_dir, chosen.digits)
    epochs = chosen.epochs or (4 if isinstance(data, MNIST) else 20)
    for seed in chosen.seeds:
        points += curve(seed, data, chosen.filters, epochs)
        console.print(f"seed {seed}: {time.perf_counter() - began:.0f} s")
    title = f"{type(data).__name__}, {chosen.filters} filters, {epochs} epochs, {len(chosen.seeds)} seeds"
    chosen.results.mkdir(parents=True, exist_ok=True)
    path = chosen.results / f"{datetime.now():%Y%m%d-%H%M%S}"
    write(path, points, {"title": title, "seconds": round(time.perf_counter() - began, 1), **facts()})
    draw(path.with_suffix(".png"), title, points)
    console.print(table(title, points))
    console.print(f"results: {path}.*", soft_wrap=True)


def data_of(folder: Path | None, digits: bool) -> ImageDataModule:
    """MNIST, or digits where they are asked for or no folder was named and MNIST is not in ``data``."""
    if not digits:
        data = MNIST(folder or "data", batch_size=128, val_fraction=0)
        try:
            data.setup()
        except DataError:
            if folder:
                raise
        else:
            return data
    data = Digits(batch_size=32, val_fraction=0)
    data.setup()
    return data


def whole(data: ImageDataModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of the training and the test part."""
    loaders = {"train": data.train_dataloader(), "test": data.test_dataloader()}
    batches = {part: zip(*loader, strict=True) for part, loader in loaders.items()}
    return {part: (torch.cat(images), torch.cat(labels)) for part, (images, labels) in batches.items()}


def curve(seed: int, data: ImageDataModule, filters: int, epochs: int) -> Iterator[Point]:
    """Train both networks and prune them in every way."""
    parts = whole(data)
    max_plus, mlp = max_plus_network(seed, data, filters, epochs), relu_network(seed, data, filters, epochs)

    def point(method: str, threshold: float | None, count: int, network: nn.Module) -> Point:
        accuracies = [accuracy(network, *parts[part]) for part in ("train", "test")]
        return Point(seed, method, threshold, count, structure.count_parameters(network), *accuracies)

    counts: list[tuple[float | None, int]] = [(None, filters)]
    yield point("wins", None, filters, structure.export(max_plus))
    for threshold in THRESHOLDS:
        pruned, report = structure.prune_head(max_plus, parts["train"][0], threshold)
        yield point("wins", threshold, len(report.kept), structure.export(pruned))
        counts.append((threshold, len(report.kept)))
    least = counts[1][1]  # between it and all filters the number is prescribed, to see the others fall
    counts += [(None, round(filters * (least / filters) ** share)) for share in (0.2, 0.4, 0.6, 0.8)]
    for threshold, count in counts:
        yield point("norm", threshold, count, by_norm(structure.export(max_plus), count))
        yield point("ReLU norm", threshold, count, by_norm(mlp, count))
    yield point("small", 0.0, least, structure.export(max_plus_network(seed, data, least, epochs)))
    yield point("ReLU small", 0.0, least, relu_network(seed, data, least, epochs))


def max_plus_network(seed: int, data: ImageDataModule, filters: int, epochs: int) -> MorphologicalClassifier:
    return trained(seed, data, epochs, head="max_plus", head_units=filters)


def relu_network(seed: int, data: ImageDataModule, units: int, epochs: int) -> nn.Module:
    L.seed_everything(seed, verbose=False)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.in_shape), units), nn.ReLU())
    return structure.export(trained(seed, data, epochs, backbone=hidden))


def trained(seed: int, data: ImageDataModule, epochs: int, **settings: Any) -> MorphologicalClassifier:
    L.seed_everything(seed, verbose=False)
    data.hparams["seed"] = seed
    optimizer = {"name": "adam", "lr": 0.01, "schedule": "one_cycle"}
    model = MorphologicalClassifier(data.in_shape, data.num_classes, (), optimizer=optimizer, **settings)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(accelerator="cpu", max_epochs=epochs, limit_val_batches=0, **off).fit(model, data)
    return model.eval()


def by_norm(network: nn.Module, count: int) -> nn.Module:
    """The ``count`` filters of the largest L2 norm."""
    filters = next(layer for layer in network.modules() if isinstance(layer, nn.Linear))
    return structure.keep_filters(network, filters.weight.norm(dim=1).topk(count).indices)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([network(batch).argmax(1) for batch in images.split(4096)])
    return (predicted == labels).float().mean().item()


# ------------------------------------------------------------------------------------------------------- results
def write(path: Path, points: Sequence[Point], about: dict[str, Any]) -> None:
    with open(path.with_suffix(".csv"), "x", newline="") as file:
        writer = csv.DictWriter(file, asdict(points[0]).keys())
        writer.writeheader()
        writer.writerows(map(asdict, points))
    with open(path.with_suffix(".json"), "x") as file:
        json.dump(about, file, indent=2)


def table(title: str, points: Sequence[Point]) -> Table:
    """Mean and standard deviation over the seeds, a line for each threshold."""
    shown = Table(title=f"{title}: test accuracy in %", box=None, header_style="bold")
    for column in ("threshold", "filters", "parameters", *STYLES):
        shown.add_column(column, justify="right")
    lines = [(None, max(p.filters for p in points)), *((threshold, None) for threshold in THRESHOLDS)]
    for threshold, count in lines:
        line = [p for p in points if p.threshold == threshold and count in (None, p.filters)]
        own = [p for p in line if p.method == "wins"]
        accuracies = [[100 * p.test_accuracy for p in line if p.method == method] for method in STYLES]
        shown.add_row(
            "all" if threshold is None else f"{threshold:g}",
            spread([p.filters for p in own], 0),
            f"{statistics.mean(p.parameters for p in own):.0f}",
            *(spread(values, 1) if values else "" for values in accuracies),
        )
    return shown


def spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    several = len(values) > 1 and statistics.stdev(values) > 0
    return f"{mean} ± {statistics.stdev(values):.{max(digits, 1)}f}" if several else mean


def error(point: Point) -> float:
    """Test error in percent."""
    return 100 * (1 - point.test_accuracy)


def draw(path: Path, title: str, points: Sequence[Point]) -> None:
    """Test error against the number of filters, a line for each seed; circles mark threshold 0."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    ordered = sorted(points, key=lambda p: (p.method, p.seed, p.filters))
    for (method, _), group in groupby(ordered, key=lambda p: (p.method, p.seed)):
        line, (colour, marker, _) = list(group), STYLES[method]
        counts, errors = [p.filters for p in line], [error(p) for p in line]
        axis.plot(counts, errors, color=colour, marker=marker, markersize=4, linewidth=1, alpha=0.7)
    exact = sorted((p.filters, error(p)) for p in points if p.method == "wins" and p.threshold == 0)
    axis.plot(*zip(*exact, strict=True), "o", color=STYLES["wins"][0], markersize=11, fillstyle="none")
    axis.annotate(
        "threshold 0: no prediction\non the training set changes",
        exact[-1],
        (0.42, 0.2),
        textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "color": "#555555", "shrinkB": 7},
        fontsize=9,
    )
    handles = [
        plt.Line2D([], [], color=c, marker=m, label=label, linestyle="none" if "small" in method else "-")
        for method, (c, m, label) in STYLES.items()
    ]
    axis.legend(handles=handles, loc="lower left", frameon=False, fontsize=9)
    least, most = min(p.filters for p in points), max(p.filters for p in points)
    ticks = sorted({least, most, *(n for n in (15, 20, 30, 50, 100) if least < n < most)})
    axis.set(xscale="log", yscale="log", xlabel="filters kept", ylabel="test error (%)", ylim=(1, 100))
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    sizes = {p.filters: p.parameters for p in points if p.method == "wins"}
    above = axis.secondary_xaxis("top")
    above.set_xticks([least, exact[0][0], most], [f"{sizes[n]:,}" for n in (least, exact[0][0], most)])
    above.minorticks_off()
    above.set_xlabel("parameters")
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
