"""A classifier of additions and maxima alone, with certificates against every perturbation of up to eps a pixel.

    python recipes/certified_mnist --data-dir data
    python recipes/certified_mnist --data-dir data --dataset fashion --eps 0.1
    python recipes/certified_mnist --data-dir data --preset gpu
    python recipes/certified_mnist --data-dir data --resume recipes/results/certified_mnist/20260101-120000

Trains with log-sum-exp in place of maxima, then with the maxima themselves; certifies all 10,000 test images by four
methods, with confidence intervals; attacks them; exports the network to 16-bit integers, where nothing is rounded; and
draws certified accuracy against radius and worst cases. Tables are printed; everything is also written to
recipes/results/certified_mnist/<date>/: every number (CSV), figures (PNG), what was printed (findings.md), how
(facts.txt), TensorBoard logs and checkpoints. Nothing is overwritten.

--preset small trains for up to 45 minutes of two cores; gpu is the wide network for bfloat16 products and one process
for each GPU; tiny only tries the command. A run that was broken off goes on with --resume and its folder, under the
settings that it was started with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found
PRESETS = ("tiny", "small", "gpu")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="certified_mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="where the images are or shall be; default: data")
    parser.add_argument("--dataset", choices=("mnist", "fashion"), default="mnist")
    parser.add_argument("--eps", type=float, default=0.3, help="the radius to certify, of pixels in [0, 1]")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--epochs", type=int, help="default: as the preset has them")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: as the preset has them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a run that was broken off")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "certified_mnist")
    return parser


def run(chosen: argparse.Namespace) -> None:
    import torch
    import training
    from shared.report import Report
    from study import study

    torch.set_num_threads(chosen.threads)
    if training.is_helper():  # one of several processes that train one network; the first one reports
        training.help_out()
        return
    if chosen.resume:
        report, setting = Report(chosen.resume), training.read(chosen.resume)
    else:
        report, setting = Report.begin(chosen.results), training.setting(chosen)
        training.write(setting, report.folder)
    report.name = "certified_mnist"
    study(setting, report)
    report.finish()


if __name__ == "__main__":
    main()
