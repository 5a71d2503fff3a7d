"""Learn to denoise from 400 images, with splines, with ReLU, freely, and without learning.

    python recipes/denoise_train400 --data-dir data
    python recipes/denoise_train400 --data-dir data --only wcrr tv
    python recipes/denoise_train400 --data-dir data --preset full --accelerator gpu --devices 4
    python recipes/denoise_train400 --data-dir data --resume recipes/results/denoise_train400/20260101-120000

crr     convex ridge regularizer: learned filters and linear splines, one minimum whatever the image; crr_stack has more
wcrr    weakly convex: steeper near 0, level far out, and denoising is convex still
relu    the convex one with ReLU in place of splines
dncnn   a convolutional network with ReLU, trained freely
tv      total variation, its weight tuned for each level

The folder of data holds Train400 and Set12 (8-bit grey images). Noise levels are in grey values of 255.
wcrr and dncnn learn all levels up to 30; crr and relu learn level 25, and scale with the level elsewhere. Tests are on
Set12 at 5, 15 and 25. Eight training images are set aside for the curves and for the weight of total
variation; test images are looked at once, at the end.

Results (CSV, Markdown, PNG, checkpoints) are in recipes/results/denoise_train400/<date>/. A run that was broken off
goes on with --resume. The preset quick is for trying the command; small takes under an hour of two cores; full is for
GPUs.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

METHODS = ("crr", "crr_stack", "wcrr", "wcrr_stack", "relu", "dncnn", "tv")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="denoise_train400", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="has Train400 and Set12; default: data")
    parser.add_argument("--preset", choices=("small", "full", "quick"), default="small")
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help=", ".join(METHODS)
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu", help="of Lightning's Trainer; default: cpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a run that was broken off")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "denoise_train400")
    return parser


def run(chosen: argparse.Namespace) -> None:
    import evaluation
    import report
    import torch
    from methods import PRESETS
    from rich.console import Console
    from training import Setting, curve, train

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    folder = chosen.resume or chosen.results / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=chosen.resume is not None)
    report.facts(folder, chosen.threads)
    strategy = "auto" if chosen.devices == 1 else "ddp_spawn"  # one script trains several networks, one after the other
    trainer = {"accelerator": chosen.accelerator, "devices": chosen.devices, "strategy": strategy}
    trainer["precision"] = chosen.precision
    setting = Setting(chosen.data_dir, folder, chosen.seed, trainer, console.is_terminal)
    results = report.Results(console, folder)
    for method in PRESETS[chosen.preset]:
        if method.name in chosen.only:
            console.rule(f"{method.name}: {method.about}")
            model = train(method, setting)
            results.trained(method.name, method.about, model, curve(method, setting))
            results.scored(
                evaluation.scores(method.name, evaluation.denoiser(model), setting, chosen.preset == "quick")
            )
    if "tv" in chosen.only:
        console.rule("tv: total variation")
        best = evaluation.TunedTotalVariation(setting)
        results.scored(evaluation.scores("tv", best, setting, chosen.preset == "quick"))
    results.finish()


if __name__ == "__main__":
    main()
