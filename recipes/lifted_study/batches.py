"""One hidden layer denoises 5000 images in batches of 250, 20 epochs; Adam takes batches of 100.

mu is 3, the ridge of the second layer 1. The ridge of the first layer, and Adam's learning rate and weight decay, are
chosen on validation images after the last epoch (* at the end of its grid). Full batch: an iteration is an epoch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import plots
from deep import AXES
from report import Report, mean, summary
from study import Candidate, Contest, Setting
from training import Run, Way, adam_batches, lifted_batches, mm, network

from morphlightning.bregman import Incremental, Memoryless, MovingAverage

BATCH, ADAMS_BATCH = 250, 100
DECAY = 0.01
"""Of the moving average's steps: 0.1 / (1 + 0.01 k) in iteration k."""
RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


def candidates(batch: int, adams_batch: int) -> list[Candidate]:
    def lifted(name: str, way: Callable[..., Way], **fixed: float) -> Candidate:
        return Candidate(name, way, {"ridge_2": 1.0, **fixed}, {"ridge": RIDGES}, {"ridge": 300.0})

    average = partial(lifted_batches, MovingAverage, batch)
    rates = {"lr": 1e-3, "weight_decay": 1e-4}
    return [
        lifted("incremental", partial(lifted_batches, Incremental, batch)),
        lifted("memoryless", partial(lifted_batches, Memoryless, batch)),
        lifted("moving average", average, lr=0.1),
        lifted("moving average, decay", average, lr=0.1, decay=DECAY),
        lifted("full batch", mm),
        Candidate("Adam", partial(adam_batches, adams_batch), axes=AXES, start=rates),
    ]


def run(setting: Setting, report: Report) -> None:
    size, last = setting.size(5000, 150), setting.size(20, 3)
    pixels, hidden = setting.images.pixels, setting.size(64, 16)
    contest = Contest(
        lambda seed: network((pixels, hidden, pixels), seed),
        lambda seed, centred: setting.images.denoising(size, seed, centred),
        setting.seeds,
        [k for k in (1, 2, 3, 5, 10, 15, 20) if k <= last],
        last,
    )
    found = contest.hold(candidates(setting.size(BATCH, 50), setting.size(ADAMS_BATCH, 25)), report)
    title = f"{pixels}-{hidden}-{pixels}, {size} images, {len(setting.seeds)} seeds"
    report.table(f"{title}: mean ± deviation", summary(found, sorted({1, min(5, last), last})))
    report.figure("curves", plots.curves(found, title, ("epoch", "training MSE", "held-out PSNR, dB")))
    conclude(found, last, report)


def conclude(found: dict[str, list[Run]], last: int, report: Report) -> None:
    adam = found["Adam"]
    for name, runs in found.items():
        if name == "Adam":
            continue
        reached = [
            next((p.iteration for p in run.points if p.score >= other.at(last).score), None)
            for run, other in zip(runs, adam, strict=True)
        ]
        when = (
            f"has Adam's PSNR of epoch {last} by epoch {max(k for k in reached if k is not None)} in all seeds"
            if None not in reached
            else f"does not reach Adam's PSNR of epoch {last} in all seeds"
        )
        seconds = [statistics.fmean(run.at(last).seconds for run in some) for some in (runs, adam)]
        report.say(
            f"{name} {when}; after {last} epochs {mean(runs, last, 'score') - mean(adam, last, 'score'):+.2f} dB, with "
            f"{seconds[0] / seconds[1]:.1f} times Adam's processor time."
        )
