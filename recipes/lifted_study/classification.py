"""MNIST's classes by cross-entropy, 784-100-10: where Adam is the better choice.

200 iterations over all samples, or over one batch of 100 each (incremental, Adam in batches). Settings are chosen by
the accuracy on validation images after the last iteration (* at the end of its grid).
"""

from __future__ import annotations

from functools import partial

import plots
from deep import DECAYS, RATES
from report import Report, mean, summary
from study import Candidate, Contest, Setting
from training import Run, adam, adam_batches, badmm, lifted_batches, mm, network

from morphlightning.bregman import Incremental

MUS = (0.1, 0.3, 1.0, 3.0, 10.0)
RIDGES = {"ridge": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "ridge_2": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}
START = {"ridge": 10.0, "ridge_2": 0.3}


def candidates(batch: int) -> list[Candidate]:
    in_batches = partial(lifted_batches, Incremental, batch, False)
    rates = {"lr": (*RATES, 0.1, 0.3), "weight_decay": (*DECAYS, 3e-3, 1e-2)}
    adams = {"lr": 3e-3, "weight_decay": 1e-4}
    return [
        *(Candidate(f"lifted MM, mu {mu:g}", mm, {"mu": mu}, RIDGES, START) for mu in MUS),
        Candidate(
            "BADMM",
            badmm,
            axes={"mu": MUS, **RIDGES, "rho_2": (0.1, 0.2, 0.5, 1.0)},
            start={"mu": 1.0, **START, "rho_2": 0.5},
        ),
        Candidate("incremental", in_batches, axes={"mu": MUS, **RIDGES}, start={"mu": 1.0, **START}),
        Candidate("Adam", adam, axes=rates, start=adams, by_loss=True),
        Candidate("Adam in batches", partial(adam_batches, batch, passes=False), axes=rates, start=adams),
    ]


def run(setting: Setting, report: Report) -> None:
    size, last = setting.size(1000, 200), setting.size(200, 10)
    pixels, hidden = setting.images.pixels, setting.size(100, 16)
    problem = setting.images.classification(size)
    contest = Contest(
        lambda seed: network((pixels, hidden, 10), seed),
        lambda seed, centred: problem,
        setting.seeds,
        [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= last],
        last,
    )
    offered = candidates(100 if not setting.quick else 50)
    found = contest.hold(offered[:: setting.size(1, 4)], report)
    title = f"{pixels}-{hidden}-10, {size} images, {len(setting.seeds)} seeds"
    report.table(f"{title}: mean ± deviation", summary(found, (setting.size(20, 5), last), ("CE", "accuracy")))
    report.figure("curves", plots.curves(found, title, ("iteration", "training cross-entropy", "test accuracy, %")))
    conclude(found, last, report)


def conclude(found: dict[str, list[Run]], last: int, report: Report) -> None:
    lifted = {name: runs for name, runs in found.items() if "Adam" not in name}
    adams = {name: runs for name, runs in found.items() if "Adam" in name}
    ours, theirs = (max(group, key=lambda n: mean(group[n], last, "score")) for group in (lifted, adams))
    above = mean(found[theirs], last, "score") - mean(found[ours], last, "score")
    fits, fits_adam = (min(mean(runs, last, "loss") for runs in group.values()) for group in (lifted, adams))
    verdict = "Adam wins here" if above > 0 else "The lifted methods win here"
    report.say(
        f"{verdict}: after {last} iterations {theirs} has a test accuracy of {mean(found[theirs], last, 'score'):.2f} "
        f"%, the best lifted method ({ours}) {mean(found[ours], last, 'score'):.2f} %."
    )
    smaller = "also fits the training data better" if fits_adam < fits else "fits the training data less well"
    report.say(
        f"Adam {smaller}: lowest training cross-entropy {fits_adam:.4f} against {fits:.4f} of the lifted methods."
    )
