"""Figures of margins and bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from bound import Certified

    from morphlightning.guarantees.information import PACBayes


def margins_and_bounds(one: Certified, how: PACBayes, test: Tensor) -> Figure:
    """Left: bounds by margin. Right: the margins of test images, and the one that is paid for."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    gammas = one.seen.gammas
    for kind, color in (("gibbs", "C0"), ("deterministic", "C1")):
        curve = [how.at(one.chain, one.seen, kind, number).value for number in range(len(gammas))]
        left.plot(gammas, curve, "o-", ms=3, color=color, label=f"{kind} bound")
    left.plot(gammas, one.seen.failures / one.seen.samples, "k--", lw=1, label="training images with smaller margins")
    left.axhline(float((test <= 0).double().mean()), color="gray", lw=1, ls=":", label="test error")
    left.set(xscale="log", xlabel="margin gamma", ylabel="probability of error", ylim=(0, 1))
    left.legend(fontsize=8)
    values = test.numpy()
    right.hist(values, np.linspace(values.min(), values.max(), 80), color="C0", alpha=0.7)
    right.axvline(0, color="k", lw=1)
    right.axvline(one.gibbs.gamma, color="C3", lw=1, label=f"gamma = {one.gibbs.gamma:.4f}")
    right.set(xlabel="margin", ylabel="test images")
    right.legend(fontsize=8)
    return figure


def margins(found: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """Distributions of margins over their spread, of training and test images."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (name, (train, test)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        scale = float(train.abs().median())
        for part, values, style in (("training", train, "-"), ("test", test, "--")):
            ordered = np.sort(values.numpy()) / scale
            axis.plot(ordered, np.linspace(0, 1, len(ordered)), style, label=part)
        axis.axvline(0, color="k", lw=0.8)
        axis.set(title=name, xlabel="margin / median", xlim=(-1.5, 3), ylim=(0, 0.6))
        axis.legend(fontsize=8)
    figure.supylabel("share of images with smaller margins", fontsize=9)
    return figure
