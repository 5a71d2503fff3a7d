"""Time the operators, as a user calls them, in every backend that works here and against their peers.

    python recipes/bench_kernels
    python recipes/bench_kernels --groups dense flat --threads 2 --memory
    python recipes/bench_kernels --device cuda --compile
    python recipes/bench_kernels --groups dense --table docs/performance.md

Everything takes turns in one process, and medians are shown with quartiles: quote the ratios, with the machine. Each
forward pass is also held against what the machine can do at most, measured in the same rounds: additions with maxima on
registers alone, or a copy. (On a CUDA device: the pairs that it can issue.) "pairs" are (input, weight) pairs, one
addition and one maximum each; a linear layer's multiply-adds are counted as pairs too. One thread is timed by process
CPU time, several threads and CUDA devices by wall clock.

Peers run where they are installed: `pip install morphlightning[bench]`, and deepinv and deepsplines for splines.
Each group writes a CSV, a Markdown table and a figure to recipes/results/bench_kernels/<date>/.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import markers
from groups import GROUPS

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMBA", "RAYON")


def main() -> None:
    parser = arguments()
    chosen = parser.parse_args()
    if chosen.table:
        if not chosen.table.is_file():
            parser.error(f"argument --table: there is no file {chosen.table}")
        if absent := markers.without_markers(chosen.table, chosen.groups):
            parser.error(
                f"argument --table: {chosen.table} needs the lines <!-- bench:{absent[0]} --> and <!-- /bench -->"
            )
    for library in LIBRARIES:  # read when a library is loaded, so before any import of one
        os.environ[f"{library}_NUM_THREADS"] = str(chosen.threads)
    run(parser, chosen)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        choices=GROUPS,
        default=list(GROUPS),
        metavar="GROUP",
        help=f"of {', '.join(GROUPS)}; default: all",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=positive, default=1, metavar="N")
    parser.add_argument("--rounds", type=positive, default=9, metavar="N", help="samples of each operator; default: 9")
    parser.add_argument("--memory", action="store_true", help="peak extra memory too; on a CPU a process an operator")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the naive forms too")
    parser.add_argument("--quick", action="store_true", help="one tiny shape a group, to try the command")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="put tables between FILE's <!-- bench:GROUP --> and <!-- /bench -->"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "bench_kernels")
    parser.add_argument("--peak-memory-of", nargs=3, help=argparse.SUPPRESS)  # how a run starts its child processes
    return parser


def positive(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number > 0, got {text!r}")
    return int(text)


def run(parser: argparse.ArgumentParser, chosen: Any) -> None:
    import torch
    from cases import Setting
    from runner import Bench, peak_memory

    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch sees no CUDA device here; `morphlightning doctor` says more")
    torch.set_num_threads(chosen.threads)
    setting = Setting(chosen.device, chosen.threads, chosen.compile, chosen.quick)
    if chosen.peak_memory_of:
        peak_memory(setting, chosen.groups[0], *chosen.peak_memory_of)
        return
    options = ["--device", chosen.device, "--threads", str(chosen.threads)]
    options += [f"--{name}" for name in ("compile", "quick") if getattr(chosen, name)]
    Bench(setting, chosen.rounds, options, chosen.memory, chosen.results, chosen.table).run(chosen.groups)


if __name__ == "__main__":
    main()
