"""Pictures of reconstructions, and residuals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from study import Outcome
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9")
"""Can be told apart by colour-blind readers (Okabe and Ito)."""


def pictures(path: Path, outcomes: Sequence[Outcome], clean: Tensor) -> None:
    """The first test image as each method sees it."""
    figure, axes = plt.subplots(1, len(outcomes) + 1, figsize=(1.5 * (len(outcomes) + 1), 1.9), layout="constrained")
    shown = [(f"{o.method}\n{o.psnr[0]:.2f} dB", o.x[0, 0]) for o in outcomes] + [("clean\n", clean[0, 0])]
    for axis, (title, image) in zip(axes, shown, strict=True):
        axis.imshow(image.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def residuals(path: Path, outcomes: Sequence[Outcome]) -> None:
    """How they fall, for the first test image of a problem."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    iterative = [outcome for outcome in outcomes if outcome.history is not None]
    for outcome, colour in zip(iterative, COLOURS, strict=False):
        assert outcome.history is not None
        axis.semilogy(
            outcome.history[: outcome.iterations[0], 0].numpy(), color=colour, label=outcome.method, linewidth=1.2
        )
    axis.set_xlabel("iteration")
    axis.set_ylabel("residual")
    axis.set_title(f"{outcomes[0].problem}: relative change of an iteration", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
