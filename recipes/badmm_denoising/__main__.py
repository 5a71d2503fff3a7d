"""Denoising MNIST with an autoencoder: BADMM and its kin against tuned optimizers.

    python recipes/badmm_denoising --data-dir data
    python recipes/badmm_denoising --data-dir data --noise 0.1 0.3 0.5
    python recipes/badmm_denoising --data-dir data --only grid
    python recipes/badmm_denoising --data-dir data --grid GRID.csv --only compare pictures
    python recipes/badmm_denoising --quick

Linear(784, 64), ReLU, Linear(64, 784) learns 1000 clean images from noisy ones (Gaussian noise, not clipped) in 500
iterations over all of them. Each method is tuned on a grid of its own, on the training images of seed 0 and the first
1000 test images; a grid grows until its best points have neighbours on all sides. Then the winners are run with all
seeds (weights, noise, training images) and measured on the next 2000 test images. Centred methods train on inputs and
targets less their means over the training images, which are added again where they are measured.

Parts: grid; compare (tables, conditions, curves); cost (an iteration of each method, blocks in turns); pictures.
--grid takes points from tables that earlier runs wrote; what is not there is computed. --quick takes scikit-learn's
small digits and few iterations, to try the command.

Tables are shown, and written with figures to recipes/results/badmm_denoising/<date>/. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import datetime
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = ("grid", "compare", "cost", "pictures")
METHODS = ("sgd", "nesterov", "adam", "lbfgs", "badmm", "mm")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="badmm_denoising", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="where MNIST is or shall be; default: data")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.3], help="standard deviations; default: 0.3")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=positive, help="default: 500, or 25 with --quick")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=f"fewer of {', '.join(METHODS)}")  # fmt: skip
    parser.add_argument("--grid", type=Path, nargs="+", default=[], metavar="FILE", help="grid.csv of earlier runs")
    parser.add_argument("--quick", action="store_true", help="small digits and few iterations, to try the command")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "badmm_denoising")
    return parser


def whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number > 0, got {text!r}")
    return int(text)


def run(chosen: argparse.Namespace) -> None:
    import grids
    import torch
    from images import Images
    from report import Report
    from study import Study
    from ways import families

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    images, data = (Images.digits(), "digits") if chosen.quick else (Images.mnist(chosen.data_dir), "MNIST")
    iterations = chosen.iterations or (25 if chosen.quick else 500)
    for seed in chosen.seeds:
        images.task(0.0, seed)  # refuses what is too large before anything runs
    scores = {key: score for path in chosen.grid for key, score in grids.read(path, data, iterations).items()}
    report = Report(begin(chosen), images, data)
    study = Study(images, data, iterations, families(chosen.methods.__contains__), report.console, scores)
    try:
        if "cost" in chosen.only:
            report.cost(*((3, 2) if chosen.quick else (40, 10)))
        if set(chosen.only) != {"cost"}:
            for noise in chosen.noise:
                report.level(study, noise, chosen.seeds, chosen.only)
    finally:
        report.finish()


def begin(chosen: argparse.Namespace) -> Path:
    """The folder of this run, with what it was made with."""
    import torch

    folder = chosen.results / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)  # fails rather than mixing two runs
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    facts = [f"command: {' '.join(['python', *sys.argv])}", f"commit: {commit.stdout.strip()}"]
    (folder / "facts.txt").write_text("\n".join([*facts, f"torch {torch.__version__}, threads {chosen.threads}", ""]))
    return folder


if __name__ == "__main__":
    main()
