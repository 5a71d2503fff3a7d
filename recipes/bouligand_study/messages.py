"""What is a message worth where maxima tie: descent, ascent, and the share of the best possible slope.

Expected. Along h the loss changes at the rate sum_i u_i max over the tied j of h_j, which no gradient represents.
What autograd sends therefore ascends now and then; the adjoint's message, which never overshoots, does so more often;
the steepest of eight candidates, chosen by that rate, always descends and nearly reaches the optimum. The optimum is
taken over the corners of the cube, where it lies, by enumeration.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import plots
import torch
from report import Report, Setting
from torch import Tensor

from morphlightning.interfaces import Spec
from morphlightning.layers import Dilation

INPUTS, ROWS = 6, 8
TOLERANCE = 1e-9
MESSAGES: dict[str, dict[str, Spec]] = {
    "first (autograd)": {},
    "uniform": {"derivative": "uniform"},
    "all": {"derivative": "all"},
    "bouligand": {"derivative": "bouligand"},
    "adjoint": {"heuristic": "adjoint"},
    "chebyshev": {"heuristic": "chebyshev"},
    "target": {"heuristic": {"name": "target", "tau": 0.5}},
    "shift": {"heuristic": "shift"},
    "sign of all": {"derivative": "all"},
    "sign of bouligand": {"derivative": "bouligand"},
    "best": {"heuristic": "best"},
}
CORNERS = torch.tensor(list(product((-1.0, 1.0), repeat=INPUTS)), dtype=torch.float64)


def run(setting: Setting, report: Report) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = {name: Dilation(INPUTS, ROWS, **rules).double() for name, rules in MESSAGES.items()}
    slopes: dict[str, list[float]] = {name: [] for name in MESSAGES}
    optima, ties = [], []
    for _ in report.track(range(setting.size(3000, 100)), "messages"):
        x, w, u = tied_case(generator)
        active = tied(x, w)
        optimum = slope(CORNERS, active, u).min().item()
        if optimum > -TOLERANCE:
            continue  # nothing descends
        optima.append(optimum)
        ties.append(active.sum(1).double().mean().item())
        for name, layer in layers.items():
            h = direction(layer, x, w, u)
            if name.startswith("sign"):
                h = torch.where(h > 0, 1.0, -1.0).double()
            slopes[name].append(slope(h[None], active, u).item())
    fractions = {name: torch.tensor(found) / torch.tensor(optima) for name, found in slopes.items()}
    rows = [row(name, torch.tensor(slopes[name]), fractions[name]) for name in MESSAGES]
    report.runs("slopes", rows)
    title = (
        f"{len(optima)} random cases, {ROWS} rows over {INPUTS} inputs, {torch.tensor(ties).mean():.1f} tied in a row"
    )
    report.table(title, [{**row, "message": str(row["message"])} for row in rows])
    judge(report, {row["message"]: row for row in rows})
    draw(report, rows, fractions)


def tied_case(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Input and weights of zeros and ones, hence full of ties, and a normal message."""
    x = torch.randint(0, 2, (INPUTS,), generator=generator).double()
    w = -torch.randint(0, 2, (ROWS, INPUTS), generator=generator).double()
    return x, w, torch.randn(ROWS, generator=generator, dtype=torch.float64)


def tied(x: Tensor, w: Tensor) -> Tensor:
    """Active sets (rows, inputs)."""
    scores = x + w
    return scores == scores.amax(1, keepdim=True)


def slope(h: Tensor, active: Tensor, u: Tensor) -> Tensor:
    """sum_i u_i max over the tied j of h_j, for directions h (directions, inputs)."""
    reached = torch.where(active, h[:, None], -torch.inf).amax(2)
    return (u * reached).sum(1)


def direction(layer: Dilation, x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Minus what a layer sends to its inputs, scaled to sup norm 1."""
    with torch.no_grad():
        layer.weight.copy_(w)
    x = x[None].requires_grad_()
    (message,) = torch.autograd.grad(layer(x), x, u[None])
    return -message[0] / message.abs().max().clamp_min(1e-12)


def row(name: str, slopes: Tensor, fraction: Tensor) -> dict[str, Any]:
    """Shares in percent."""
    return {
        "message": name,
        "descent %": 100 * (slopes < -TOLERANCE).double().mean().item(),
        "ascent %": 100 * (slopes > TOLERANCE).double().mean().item(),
        "mean share of the optimum": fraction.clamp_min(-1).mean().item(),
        "median share": fraction.median().item(),
    }


def judge(report: Report, rows: dict[str, dict[str, Any]]) -> None:
    best, first, adjoint = rows["best"], rows["first (autograd)"], rows["adjoint"]
    report.verdict(
        "The steepest of eight descends in at least 99.9 % of the cases.",
        f"{best['descent %']:.2f} %, with {best['mean share of the optimum']:.2f} of the optimum on average.",
        best["descent %"] >= 99.9,
    )
    report.verdict(
        "Autograd's message is a direction of ascent now and then.",
        f"in {first['ascent %']:.1f} % of the cases; it descends in {first['descent %']:.1f} %.",
        first["ascent %"] > 5,
    )
    report.verdict(
        "The adjoint's message ascends more often than autograd's.",
        f"in {adjoint['ascent %']:.1f} % of the cases.",
        adjoint["ascent %"] > first["ascent %"],
    )


def draw(report: Report, rows: list[dict[str, Any]], fractions: dict[str, Tensor]) -> None:
    figure, (axes,) = plots.panels(1, 2, 5.2, 0.34 * len(rows) + 1.3, sharey=True)
    names, positions = list(fractions), range(len(rows))[::-1]
    left, right = axes
    left.barh(positions, [row["descent %"] for row in rows], color=plots.BLUE, label="descends")
    left.barh(positions, [-row["ascent %"] for row in rows], color=plots.RED, label="ascends")
    for position, row in zip(positions, rows, strict=True):
        beside = {"textcoords": "offset points", "va": "center", "fontsize": 8}
        left.annotate(f"{row['descent %']:.1f}", (row["descent %"], position), (3, 0), **beside)
        left.annotate(f"{row['ascent %']:.1f}", (-row["ascent %"], position), (-3, 0), ha="right", **beside)
    left.set_yticks(positions, names, fontsize=9)
    left.set_xlim(-42, 115)
    left.set_xticks([-25, 0, 25, 50, 75, 100], ["25", "0", "25", "50", "75", "100"])
    left.set_xlabel("share of the cases, %")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    right.boxplot(
        [fractions[name].numpy() for name in names], positions=list(positions), orientation="horizontal", widths=0.6,
        whis=(5, 95), showfliers=False, medianprops={"color": plots.RED, "lw": 2}, manage_ticks=False,
    )  # fmt: skip
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlim(-1.1, 1.05)
    right.set_xlabel("slope / best possible slope (box: quartiles; whiskers: 5 to 95 %)")
    report.figure("slopes", figure)
