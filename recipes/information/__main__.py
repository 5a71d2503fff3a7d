"""How much networks of digits know, in bits: of weights, of activations, of taps that win, and a bound on the error.

    python recipes/information --data-dir data
    python recipes/information --data-dir data --only bound --seeds 0 1 2

bound           a max-plus network trained for its PAC-Bayes bound on MNIST: margins, few winning taps, no sampling
comparison      three networks side by side: bits of weights and activations, winning taps, a bound where there is one
neurons         one dilation neuron from noisy data: EM under Gumbel noise, residuation, Adam

Tables are printed; everything is also written to recipes/results/information/<date>/: every number (CSV), figures
(PNG), what was printed (findings.md), and how (facts.txt). Nothing is overwritten. --preset small takes about a
minute of one core, full is for a GPU or an hour; --preset tiny only tries the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = ("bound", "comparison", "neurons")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    from shared.command import study_parser

    parser = study_parser("information", __doc__, PARTS)
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
            module.run(chosen, setting, tuple(chosen.seeds or range(setting.seeds)), report)
    report.finish()


if __name__ == "__main__":
    main()
