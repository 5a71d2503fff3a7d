"""What is known of the global optimum of networks that are sums of subnetworks, while they grow.

    python recipes/optimality --data-dir data
    python recipes/optimality --only one_variable
    python recipes/optimality --data-dir data --dataset fashion --preset full --device cuda

one_variable  sums of max(s x + w, v): every number is exact, and the optimum is certified to a fraction of a percent
images        MNIST or Fashion-MNIST: linear factors, max-plus (gain) dilations, ReLU neurons and small convolutional
              networks side by side: what the certificate says before, while and after they grow

Networks start with no slice. Each stage trains on the full batch, then the callbacks certify and append the slice that
pays most. Tables are printed; everything is also written to recipes/results/optimality/<date>/: every report (CSV),
figures (PNG), what was printed (findings.md), and how (facts.txt). Nothing is overwritten. --preset small takes about
2 minutes of one core; tiny only tries the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found
PARTS = ("one_variable", "images")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    from shared.command import study_parser

    parser = study_parser("optimality", __doc__, PARTS)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run(chosen: argparse.Namespace) -> None:
    import torch
    from shared.report import Report

    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    report = Report.begin(chosen.results)
    for part in chosen.only:
        module = importlib.import_module(part)
        with report.part(part, module.__doc__):
            module.run(chosen, module.PRESETS[chosen.preset], report)
    report.finish()


if __name__ == "__main__":
    main()
