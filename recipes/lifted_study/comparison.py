"""One hidden layer denoises 1000 images: lifted methods against block coordinate descent and ADMM with penalties.

Block coordinate descent is that of Zeng et al. (arXiv 1803.00225), ADMM that of Taylor et al. (arXiv 1605.02026), in
our implementation, with BADMM's ridge: 100 rho (first layer) and rho. Their gamma, rho, and alpha are chosen on
validation images after 100 iterations (* at the end of its grid); of the lifted methods nothing is, mu is 3.
"""

from __future__ import annotations

import plots
from others import BlockCoordinateDescent, PenaltyAdmm
from problems import Problem
from report import Report, mean, summary
from study import Candidate, Contest, Setting
from torch import nn
from training import Run, Step, Way, badmm, mm, network

from morphlightning.bregman import Chain

RIDGE = {"ridge": 100.0, "ridge_2": 1.0}
WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
PENALTIES = {"gamma": WEIGHTS, "rho": WEIGHTS}


def bcd(gamma: float, rho: float, alpha: float) -> Way:
    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        return BlockCoordinateDescent(Chain(network), *problem.train, gamma, rho, ridges(rho), alpha).iterate

    return way


def admm(gamma: float, rho: float) -> Way:
    def way(network: nn.Sequential, problem: Problem, seed: int) -> Step:
        return PenaltyAdmm(Chain(network), *problem.train, gamma, rho, ridges(rho)).iterate

    return way


def ridges(rho: float) -> list[float]:
    return [rho * each for each in RIDGE.values()]


START = {"gamma": 1.0, "rho": 1.0}
CANDIDATES = (
    Candidate("BADMM", badmm, RIDGE),
    Candidate("lifted MM", mm, RIDGE),
    Candidate("BCD", bcd, axes={**PENALTIES, "alpha": (0.0, 0.1, 1.0, 5.0)}, start={**START, "alpha": 0.0}),
    Candidate("ADMM with penalties", admm, axes=PENALTIES, start=START),
)


def run(setting: Setting, report: Report) -> None:
    size, at = setting.size(1000, 100), setting.size((10, 100, 500), (2, 5, 10))
    pixels, hidden = setting.images.pixels, setting.size(64, 16)
    contest = Contest(
        lambda seed: network((pixels, hidden, pixels), seed),
        lambda seed, centred: setting.images.denoising(size, seed, centred),
        setting.seeds,
        sorted({*at, *(k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= at[-1])}),
        at[1],
    )
    found = contest.hold(CANDIDATES, report)
    title = f"{pixels}-{hidden}-{pixels}, {size} images, {len(setting.seeds)} seeds"
    report.table(f"{title}: mean ± deviation", summary(found, at, digits=5))
    report.figure("curves", plots.curves(found, title, ("iteration", "training MSE", "held-out PSNR, dB")))
    conclude(found, at, report)


def conclude(found: dict[str, list[Run]], at: tuple[int, ...], report: Report) -> None:
    lifted = {name: found[name] for name in ("BADMM", "lifted MM")}
    rest = {name: runs for name, runs in found.items() if name not in lifted}
    for k in (at[0], at[-1]):
        ours, theirs = (max(group, key=lambda n: mean(group[n], k, "score")) for group in (lifted, rest))
        report.say(
            f"After {k} iterations {ours} has {mean(found[ours], k, 'score'):.2f} dB and a training MSE of "
            f"{mean(found[ours], k, 'loss'):.5f}; the best of the others, {theirs}, "
            f"{mean(found[theirs], k, 'score'):.2f} dB and {mean(found[theirs], k, 'loss'):.5f}."
        )
