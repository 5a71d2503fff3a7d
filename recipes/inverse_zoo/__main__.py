"""Reconstruct images from five kinds of data, with and without learning, always knowing what converges.

    python recipes/inverse_zoo --data-dir data
    python recipes/inverse_zoo --data-dir data --crr CRR.ckpt --wcrr WCRR.ckpt
    python recipes/inverse_zoo --data-dir data --only inpainting ct
    python recipes/inverse_zoo --preset quick

deblurring, inpainting (60 % missing), super-resolution (x2), fourier (a quarter of the columns), ct (parallel beams);
noise of 1 % of white. Methods: total variation; convex and weakly convex ridge regularizers from checkpoints of
recipes/denoise_train400 (--crr, --wcrr; without, they are left out); forward-backward and ADMM with a firmly
non-expansive denoiser that is trained here once; unrolled proximal gradient steps, trained here for each problem.

Settings are tuned on four images of Train400, networks trained on the others of Train400, and all tested once on Set12.
The preset small takes the 96 x 96 middles of four images and under 15 minutes of one core; full takes the seven images
of 256 x 256 and trains longer; quick takes drawn images, to try the command. Tables, pictures, residuals and every
value are written to recipes/results/inverse_zoo/<date>/. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

NAMES = ("deblurring", "inpainting", "super-resolution", "fourier", "ct")


class Preset(NamedTuple):
    """How much is done."""

    side: int
    count: int
    layers: int
    features: int
    denoiser_steps: int
    unrolled_steps: int
    max_iterations: int


PRESETS = {
    "quick": Preset(32, 2, 3, 4, 5, 5, 30),
    "small": Preset(96, 4, 6, 12, 500, 400, 400),
    "full": Preset(256, 7, 16, 48, 20_000, 5000, 2000),
}


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inverse_zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="has Train400 and Set12; default: data")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="PROBLEM", help=", ".join(NAMES)
    )
    parser.add_argument("--crr", type=Path, metavar="FILE", help="checkpoint of a convex ridge regularizer")
    parser.add_argument("--wcrr", type=Path, metavar="FILE", help="checkpoint of a weakly convex ridge regularizer")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "inverse_zoo")
    return parser


def positive(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number > 0, got {text!r}")
    return int(text)


def run(chosen: argparse.Namespace) -> None:
    import methods
    import networks
    import torch
    from images import Images
    from problems import PROBLEMS
    from report import Report
    from study import Study

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    preset = PRESETS[chosen.preset]
    quick = chosen.preset == "quick"
    images = Images.drawn(preset.side) if quick else Images.folder(chosen.data_dir, preset.side, preset.count)
    given = [("CRR", "convex ridge regularizer", chosen.crr), ("WCRR", "weakly convex ridge regularizer", chosen.wcrr)]
    ways = [methods.total_variation()]
    ways += [methods.ridge(name, about, path) for name, about, path in given if path is not None]
    report = Report.begin(chosen.results, chosen.threads)
    began = time.process_time()
    denoiser = networks.denoiser(images, preset.layers, preset.features, preset.denoiser_steps)
    report.say(f"{time.process_time() - began:.0f} s to train the denoiser, {denoiser.averagedness():.4f}-averaged")
    ways += [methods.forward_backward(denoiser), methods.admm(denoiser)]
    for name in chosen.only:
        problem = PROBLEMS[name](preset.side)
        study = Study(problem, images, preset.max_iterations)
        outcomes = [study.start(), *(study.run(method) for method in ways)]
        started = time.process_time()
        network = networks.unrolled(problem, images, preset.layers, preset.features, preset.unrolled_steps)
        spent = time.process_time() - started
        outcomes.append(study.trained(network))
        report.problem(f"{problem.about}; {spent:.0f} s to train the unrolled network", outcomes, images)
    report.finish(time.process_time() - began)


if __name__ == "__main__":
    main()
