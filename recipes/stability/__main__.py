"""What a morphological network, a ReLU network and a convolutional one make of deformed, shifted and brightened digits.

    python recipes/stability --data-dir data
    python recipes/stability --data-dir data --seeds 0 1 2 --preset full --device cuda

deformations    stability D to deformations of known gradient, G to noise of the same size, their ratio R, by kappa
changes         predictions kept under shifts, brightness, gain and contrast; how far each layer is from commuting

Three networks are trained by the same recipe for each seed. Tables are printed; everything is also written to
recipes/results/stability/<date>/: every number (CSV), figures (PNG), what was printed (findings.md), and how
(facts.txt). Nothing is overwritten. --preset small takes about a minute of one core, full is for a GPU; --preset tiny
only tries the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = ("deformations", "changes")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    from shared.command import study_parser

    parser = study_parser("stability", __doc__, PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: as the preset has them")
    return parser


def run(chosen: argparse.Namespace) -> None:
    import torch
    from shared.report import Report
    from study import PRESETS, Study

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    report = Report.begin(chosen.results)
    with report.part("networks", "Three networks, trained alike."):
        study = Study.trained(chosen, PRESETS[chosen.preset], report)
    for part in chosen.only:
        module = importlib.import_module(part)
        with report.part(part, module.__doc__):
            module.run(study, report)
    report.finish()


if __name__ == "__main__":
    main()
