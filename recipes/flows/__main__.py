"""Learn densities by normalizing flows of splines, beside affine couplings and residual steps.

    python recipes/flows
    python recipes/flows --preset full --seeds 0 1 2
    python recipes/flows --only digits

densities  five densities in the plane: likelihood of test points, round trips, pictures
digits     scikit-learn's 8x8 digits: bits per dimension, a sheet of samples

Methods: couplings with affine maps, with linear splines and with quadratic splines, all with the same conditioners, and
residual steps whose branches are 1-Lipschitz networks with quadratic splines. The preset small takes under ten minutes
of one core; full trains twenty times as long in the plane. The seed sets weights, data and their order. Everything is
also written to recipes/results/flows/<date>/: every run (CSV), figures (PNG), what was printed (findings.md), and how
(facts.txt). Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where what recipes share is found

PARTS = ("densities", "digits")
PRESETS = ("small", "full", "quick")


def main() -> None:
    from shared.command import start

    start(arguments(), run)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--preset", choices=PRESETS, default="small", help="default: small; quick only tries the command"
    )
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "flows")
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
    from shared.report import Report
    from study import Setting

    torch.set_num_threads(chosen.threads)
    setting = Setting(chosen.preset, tuple(chosen.seeds))
    report = Report.begin(chosen.results, chosen.threads)
    for part in chosen.only:
        module = importlib.import_module(part)
        with report.part(part, module.__doc__):
            module.run(setting, report)
    report.finish("the sizes of the preset quick are too small to judge by" if chosen.preset == "quick" else "")


if __name__ == "__main__":
    main()
