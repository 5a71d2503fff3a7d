"""Measure what helps morphological layers train: rules at ties, messages, updates, initializers, position and rates.

    python recipes/bouligand_study
    python recipes/bouligand_study --quick
    python recipes/bouligand_study --only messages teacher_student --seeds 0 1 2
    python recipes/bouligand_study --data-dir /path/to/data

Each part says what is expected and why (docs/bouligand.md), and whether it was found. MNIST and Fashion-MNIST are
taken from DIR/MNIST/raw and DIR/FashionMNIST/raw where they are there; scikit-learn's digits always are. Everything
runs on one thread. The comparison of methods takes all seeds, other tables the first three. Tables (CSV: every run;
Markdown: summaries), figures and verdicts go to recipes/results/bouligand_study/<date>/; nothing is overwritten.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

PARTS = ("messages", "teacher_student", "learning_rate", "initialization", "depth_and_position")


def main() -> None:
    parser = arguments()
    chosen = parser.parse_args()
    if chosen.data_dir is not None and not chosen.data_dir.is_dir():
        parser.error(f"argument --data-dir: there is no folder {chosen.data_dir}")
    for library in ("OMP", "MKL", "NUMBA"):  # read when a library is loaded, so before any import of one
        os.environ[f"{library}_NUM_THREADS"] = "1"
    run(chosen)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bouligand_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=seed, nargs="+", default=list(range(5)), help="default: 0 1 2 3 4")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and the first seed, to try the command")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "bouligand_study")
    return parser


def seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def run(chosen: argparse.Namespace) -> None:
    import torch
    from report import Report, Setting

    torch.set_num_threads(1)
    seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
    setting = Setting(tuple(seeds), chosen.quick, chosen.data_dir)
    report = Report.begin(chosen.results, chosen.quick)
    for part in chosen.only:
        module = importlib.import_module(part)
        with report.part(part, module.__doc__):
            module.run(setting, report)
    report.finish()


if __name__ == "__main__":
    main()
