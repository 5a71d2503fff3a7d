"""Measure lifted training: depth, activations, mini-batches, settings, classification, kindred methods, precision.

    python recipes/lifted_study --data-dir data
    python recipes/lifted_study --data-dir data --only deep batches --seeds 0 1 2
    python recipes/lifted_study --quick

deep            784-256-64-256-784 denoises: lifted methods against Adam, uncentred and centred
activations     ten activations with the same settings, and that the lifted objective never increases
batches         5000 images in batches: incremental, without memory, moving average, against Adam
sensitivity     BADMM with one setting changed at a time
classification  784-100-10 by cross-entropy: where Adam is the better choice
others          block coordinate descent and ADMM with quadratic penalties
precision       float32, float64, and products rounded to bfloat16

Methods train on the first MNIST training images; denoising adds Gaussian noise of 0.3, not clipped, drawn once. The
seed sets initial weights, noise, and the order of batches. Settings are chosen on the first 1000 test images with the
first seed; figures are those of the next 2000. Everything is also written to recipes/results/lifted_study/<date>/:
every run (CSV), figures (PNG), what was printed (findings.md), and how (facts.txt). Nothing is overwritten. --quick
takes scikit-learn's small digits and few iterations, to try the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = {
    "deep": "deep",
    "activations": "activations",
    "batches": "batches",
    "sensitivity": "sensitivity",
    "classification": "classification",
    "others": "comparison",
    "precision": "precision",
}
"""Parts and their modules."""


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lifted_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="where MNIST is or shall be; default: data")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--quick", action="store_true", help="small digits, few iterations and the first seed")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "lifted_study")
    return parser


def whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    if whole(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number > 0, got {text!r}")
    return int(text)


def run(chosen: argparse.Namespace) -> None:
    import torch
    from problems import Images
    from report import Report
    from study import Setting

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    images = Images.digits() if chosen.quick else Images.mnist(chosen.data_dir)
    setting = Setting(images, tuple(chosen.seeds[:1] if chosen.quick else chosen.seeds), chosen.quick)
    report = Report.begin(chosen.results, chosen.threads)
    for part in chosen.only:
        module = importlib.import_module(PARTS[part])
        with report.part(part, module.__doc__):
            module.run(setting, report)
    report.finish("the sizes of --quick are too small to judge by" if chosen.quick else "")


if __name__ == "__main__":
    main()
