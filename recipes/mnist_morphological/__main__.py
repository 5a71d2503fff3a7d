"""MNIST by maxima, minima and additions of constants alone, from the pixels to the logits.

    python recipes/mnist_morphological --data-dir data
    python recipes/mnist_morphological --data-dir data --seeds 0 --ablation
    python recipes/mnist_morphological --data-dir data --train-size 5000 --epochs 2 --seeds 0

Trains one network in our way (the gradient of log-sum-exp, whose beta grows) and by plain autograd with Adam, whose
learning rate and start are chosen on the validation images with the first seed; the same epochs for both. --ablation
removes one ingredient of ours at a time. Accuracies are always those of the network with maxima; the test
images are looked at once a run, after its last epoch, and nothing is chosen by them.

Tables are shown, and written with a figure to recipes/results/mnist_morphological/<date>/. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="mnist_morphological", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="where MNIST is or shall be; default: data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=positive, default=6)
    parser.add_argument("--train-size", type=positive, help="fewer training images, to try the command")
    parser.add_argument("--test-size", type=positive, help="fewer validation and test images")
    parser.add_argument("--ablation", action="store_true", help="remove one ingredient at a time instead")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "mnist_morphological")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # read when a library is loaded, so before any import of one
    run(chosen)


def positive(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number > 0, got {text!r}")
    return int(text)


def run(chosen: argparse.Namespace) -> None:
    import report
    import torch
    from rich.console import Console
    from study import Study
    from training import Images

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    console, folder = Console(), chosen.results / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    facts = [f"command: {' '.join(['python', *sys.argv])}", f"commit: {commit.stdout.strip()}"]
    (folder / "facts.txt").write_text("\n".join([*facts, f"torch {torch.__version__}, threads {chosen.threads}", ""]))
    study = Study(Images.read(chosen.data_dir, chosen.train_size, chosen.test_size), chosen.epochs, console)
    try:
        if chosen.ablation:
            console.print(report.table("MNIST, one ingredient removed", study.ablation(chosen.seeds)))
        else:
            ours, plain = study.comparison(chosen.seeds)
            console.print(report.table("MNIST, maxima and additions of constants alone", [*ours, *plain]))
            console.print(report.verdict(ours, plain))
            report.draw(folder / "accuracy.png", ours, plain)
    finally:
        if study.runs:
            report.write_epochs(folder / "epochs.csv", study.runs)
            report.write_runs(folder / "runs.csv", study.runs)
    console.print(f"results: {folder}")


if __name__ == "__main__":
    main()
