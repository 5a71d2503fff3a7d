"""The same networks with linear splines, ReLU and others: with a certified Lipschitz constant of 1, and free.

    python recipes/spline_vs_relu --data-dir data
    python recipes/spline_vs_relu --only regression --seeds 0 1 2
    python recipes/spline_vs_relu --data-dir data --dataset fashion --preset full --device cuda

regression      1-Lipschitz networks fit 1-Lipschitz functions with many kinks, from exact and from noisy samples
classification  MNIST or Fashion-MNIST: accuracy, certified radius, seconds and parameters

Every activation gets the same budget: the same learning rates are tried with two seeds of their own, on samples that
serve nothing else, and the best is trained with all seeds. Tables are printed; everything is also written to
recipes/results/spline_vs_relu/<date>/: every run (CSV), figures (PNG), what was printed (findings.md), and how
(facts.txt). Nothing is overwritten. --preset small takes about 12 minutes of one core, full is for a GPU or a night;
--preset tiny only tries the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = ("regression", "classification")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    from shared.command import study_parser

    parser = study_parser("spline_vs_relu", __doc__, PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: as the preset has them")
    return parser


def run(chosen: argparse.Namespace) -> None:
    import torch
    from shared.report import Report

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    report = Report.begin(chosen.results)
    for part in chosen.only:
        module = importlib.import_module(part)
        setting = module.PRESETS[chosen.preset]
        with report.part(part, module.__doc__):
            module.run(chosen, setting, chosen.seeds or range(setting.seeds), report)
    report.finish()


if __name__ == "__main__":
    main()
