"""Time the operators against their peers, in one process, and write a table.

    python recipes/bench_operators.py
    python recipes/bench_operators.py --threads 2 --repeats 15

Peers: nn.Linear and the broadcast max for dense operators; nn.Conv2d, kornia and max-pooling for windows. Candidates
are interleaved and medians printed, so that a noisy machine disturbs all alike; quote the ratios. "pairs" are (input,
weight) pairs: one addition and one maximum each. The physical limit of a core is two vector instructions a cycle; the
eager backend is bound by memory instead, which is what the column shows. Needs `pip install morphlightning[bench]`.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from morphlightning.functional import dilation, dilation2d

Step = Callable[[], Tensor]


def dense_case(batch: int, inputs: int, outputs: int) -> tuple[str, int, dict[str, Step], list[Tensor]]:
    """Dense dilation against a linear layer of the same shape."""
    x = torch.rand(batch, inputs, requires_grad=True)
    w = torch.rand(outputs, inputs, requires_grad=True)
    steps = {
        "morphlightning": lambda: dilation(x, w),
        "broadcast amax": lambda: (x[:, None] + w).amax(-1),
        "broadcast max": lambda: (x[:, None] + w).max(-1).values,
        "linear": lambda: F.linear(x, w),
    }
    return f"dense {batch}x{inputs}->{outputs}", batch * inputs * outputs, steps, [x, w]


def window_case(batch: int, channels: int, side: int, size: int) -> tuple[str, int, dict[str, Step], list[Tensor]]:
    """Depthwise non-flat dilation against convolution, kornia and (flat) max-pooling."""
    x = torch.rand(batch, channels, side, side, requires_grad=True)
    b = torch.rand(size, size, requires_grad=True)
    kernel = torch.rand(channels, 1, size, size, requires_grad=True)
    steps = {
        "morphlightning": lambda: dilation2d(x, b),
        "morphlightning flat": lambda: dilation2d(x, size),
        "kornia": lambda: kornia.morphology.dilation(x, torch.ones(size, size), structuring_element=b),
        "conv2d": lambda: F.conv2d(x, kernel, padding=size // 2, groups=channels),
        "max_pool2d (flat)": lambda: F.max_pool2d(x, size, 1, size // 2),
    }
    return f"window {batch}x{channels}x{side}^2 K={size}", x.numel() * size * size, steps, [x, b, kernel]


def full_case(batch: int, inputs: int, outputs: int, side: int) -> tuple[str, int, dict[str, Step], list[Tensor]]:
    """Full 3x3 dilation against convolution and unfolding."""
    x = torch.rand(batch, inputs, side, side, requires_grad=True)
    w = torch.rand(outputs, inputs, 3, 3, requires_grad=True)

    def unfold() -> Tensor:
        patches = F.unfold(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3)
        return (patches[:, None] + w.flatten(1)[None, :, :, None]).amax(2)

    steps = {
        "morphlightning": lambda: dilation2d(x, w),
        "unfold amax": unfold,
        "conv2d": lambda: F.conv2d(x, w, padding=1),
    }
    return f"full {batch}x{inputs}->{outputs} {side}^2 K=3", x.numel() * outputs * 9, steps, [x, w]


CASES = (
    (dense_case, (128, 784, 100)),
    (dense_case, (256, 784, 256)),
    (window_case, (16, 8, 64, 3)),
    (window_case, (16, 8, 64, 7)),
    (full_case, (16, 8, 16, 28)),
)


def forward_and_backward(step: Step, leaves: list[Tensor]) -> tuple[float, float]:
    """Milliseconds of the forward pass without gradients, and of forward and backward together."""
    with torch.no_grad():
        began = time.perf_counter()
        step()
        forward = time.perf_counter() - began
    for leaf in leaves:
        leaf.grad = None
    began = time.perf_counter()
    step().sum().backward()
    return 1e3 * forward, 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "bench_operators")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    rows = []
    for make, shape in CASES:
        case, pairs, steps, leaves = make(*shape)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(chosen.repeats + 1):
            for name, step in steps.items():
                times[name].append(forward_and_backward(step, leaves))
        ours = [statistics.median(column) for column in zip(*times["morphlightning"][1:], strict=True)]
        for name, measured in times.items():
            forward, both = (statistics.median(column) for column in zip(*measured[1:], strict=True))
            rate = pairs / forward / 1e6
            rows.append((case, name, forward, rate, both, forward / ours[0], both / ours[1]))
    show_and_save(rows, chosen)


def show_and_save(rows: list[tuple[str, str, float, float, float, float, float]], chosen: argparse.Namespace) -> None:
    """Print the table and write it, never over an earlier one."""
    columns = ("case", "operator", "forward ms", "Gpairs/s", "forward+backward ms", "x ours", "x ours (both)")
    table = Table(*columns, title=f"{platform.machine()}, {chosen.threads} thread(s)", box=None, header_style="bold")
    for case, name, *numbers in rows:
        table.add_row(case, name, *(f"{number:.2f}" for number in numbers))
    Console(width=130).print(table)
    chosen.results.mkdir(parents=True, exist_ok=True)
    path = chosen.results / f"{datetime.now():%Y%m%d-%H%M%S}.csv"
    with open(path, "x", newline="") as file:
        rounded = [(case, name, *(round(number, 4) for number in numbers)) for case, name, *numbers in rows]
        csv.writer(file).writerows([columns, *rounded])
    print(f"written to {path}")


if __name__ == "__main__":
    main()
