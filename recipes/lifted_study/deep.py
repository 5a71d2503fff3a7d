"""Three hidden layers denoise 1000 images: lifted methods, ridge 100 (first layer) and 1, against Adam.

Of Adam, learning rate and weight decay are chosen on validation images after the last iteration (* at the end of its
grid), or by the training loss; of the lifted methods nothing is. Centred: inputs and targets less their means.
"""

from __future__ import annotations

import statistics

import plots
from report import Report, mean, summary
from study import Candidate, Contest, Setting
from training import Run, adam, badmm, mm, network

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (0.0, 3e-5, 1e-4, 3e-4, 1e-3)
AXES = {"lr": RATES, "weight_decay": DECAYS}
RIDGE = {"ridge": 100.0, "ridge_2": 1.0}
CANDIDATES = (
    *(Candidate(f"lifted MM, mu {mu:g}", mm, {**RIDGE, "mu": mu}) for mu in (1.0, 3.0, 10.0)),
    *(Candidate(f"BADMM {order}, mu 3", badmm, {**RIDGE, "order": order}) for order in ("xWM", "XZWM")),  # type: ignore[dict-item]
    Candidate("Adam", adam, axes=AXES, start={"lr": 1e-3, "weight_decay": 1e-4}, by_loss=True),
    Candidate("Adam centred", adam, axes=AXES, start={"lr": 3e-3, "weight_decay": 1e-4}, centred=True, by_loss=True),
)


def run(setting: Setting, report: Report) -> None:
    size, last, early = setting.size(1000, 100), setting.size(500, 20), setting.size(50, 5)
    pixels, inner = setting.images.pixels, setting.size((256, 64, 256), (24, 12, 24))
    contest = Contest(
        lambda seed: network((pixels, *inner, pixels), seed),
        lambda seed, centred: setting.images.denoising(size, seed, centred),
        setting.seeds,
        [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 300, 500) if k <= last],
        last,
    )
    found = contest.hold(CANDIDATES, report)
    title = f"{pixels}-{'-'.join(map(str, inner))}-{pixels}, {size} images, {len(setting.seeds)} seeds"
    report.table(f"{title}: mean ± deviation", summary(found, (early, last), digits=5))
    report.figure("curves", plots.curves(found, title, ("iteration", "training MSE", "held-out PSNR, dB")))
    conclude(found, early, last, report)


def conclude(found: dict[str, list[Run]], early: int, last: int, report: Report) -> None:
    lifted = {name: runs for name, runs in found.items() if "Adam" not in name}
    adams = {name: runs for name, runs in found.items() if "Adam" in name}
    for iteration in (early, last):
        ours, theirs = (max(group, key=lambda n: mean(group[n], iteration, "score")) for group in (lifted, adams))
        report.say(
            f"Held-out PSNR after {iteration} iterations: best lifted {mean(found[ours], iteration, 'score'):.2f} dB "
            f"({ours}; the worst of them {min(mean(r, iteration, 'score') for r in lifted.values()):.2f}), "
            f"best Adam {mean(found[theirs], iteration, 'score'):.2f} dB ({theirs})."
        )
    ours, theirs = (min(group, key=lambda n: mean(group[n], last, "loss")) for group in (lifted, adams))
    report.say(
        f"Training MSE after {last}: lowest lifted {mean(found[ours], last, 'loss'):.5f} ({ours}), lowest Adam "
        f"{mean(found[theirs], last, 'loss'):.5f} ({theirs})."
    )
    best = max(adams.values(), key=lambda runs: mean(runs, last, "score"))
    for name, runs in lifted.items():
        wins = [run.at(early).score >= other.at(last).score for run, other in zip(runs, best, strict=True)]
        report.say(
            f"{name}: after {early} iterations at or above the best Adam after {last} in {sum(wins)} of {len(wins)} "
            f"seeds, {statistics.fmean(run.at(last).score for run in runs) - mean(best, last, 'score'):+.2f} dB "
            f"after {last}."
        )
