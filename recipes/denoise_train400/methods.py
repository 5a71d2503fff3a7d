"""What is trained, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from networks import Dncnn, with_relu

from morphlightning.models import RidgeRegularizerDenoiser
from morphlightning.models.ridge import default_activation, starting_profile

LEVELS = (0.0, 30 / 255)
"""Noise levels that one network learns; white is 1."""
LEVEL = 25 / 255
"""The level of networks that learn one."""


@dataclass(frozen=True)
class Method:
    """A network and its training.

    Attributes:
        name: What it is called.
        about: What it is.
        make: Builds it.
        steps: Optimizer steps; a multiple of the points of learning curves, since the last is a point.
        batch: Patches of a batch of all processes together.
        patch: Side of a patch.
        noise: The lowest and the highest level of training.
    """

    name: str
    about: str
    make: Callable[[], L.LightningModule]
    steps: int
    batch: int = 16
    patch: int = 42
    noise: tuple[float, float] = LEVELS


def ridge(
    weak_convexity: float,
    channels: tuple[int, ...] = (1, 48),
    kernel_size: int = 7,
    noise: float | tuple[float, float] = LEVEL,
    learn_knots: bool = False,
    lr: float = 5e-3,
    **settings: Any,
) -> RidgeRegularizerDenoiser:
    """A ridge regularizer, trained through its minimizer."""
    activation = default_activation(weak_convexity) | {"learn_knots": learn_knots}
    rates = {"activation": 1e-4, "scale": 3e-2}
    optimizer = {"name": "adam", "lr": lr, "betas": [0.9, 0.99], "rates": rates, "schedule": "cosine", "warmup": 0.04}
    model = RidgeRegularizerDenoiser(
        channels,
        kernel_size,
        weak_convexity=weak_convexity,
        activation=activation,
        noise=noise,
        optimizer=optimizer,
        loss="mse_loss",
        **settings,
    )
    model.regularizer.activation.fit_(lambda t: starting_profile(t, weak_convexity))  # type: ignore[operator]
    return model


def relu(channels: tuple[int, ...] = (1, 48), kernel_size: int = 7) -> RidgeRegularizerDenoiser:
    """The convex one with ReLU in place of splines."""
    return with_relu(ridge(0.0, channels, kernel_size))


CRR, WCRR, RELU, DNCNN = "convex, splines", "weakly convex, splines", "convex, ReLU", "free, ReLU"
ONE = (LEVEL, LEVEL)
STACK: dict[str, Any] = {"channels": (1, 8, 32), "zero_mean": "all", "shared": False, "lr": 4e-3}
"""Two layers, windows of 13 x 13 and splines of each feature: what a convex regularizer gains by."""
SMALL = (
    Method("crr", CRR, partial(ridge, 0.0), 600, noise=ONE),
    Method("crr_stack", CRR + ", two layers", partial(ridge, 0.0, **STACK), 960, patch=40, noise=ONE),
    Method("wcrr", WCRR, partial(ridge, 1.0, noise=LEVELS), 800),
    Method("relu", RELU, relu, 400, noise=ONE),
    Method("dncnn", DNCNN, Dncnn, 1600),
)
QUICK = (
    Method("crr", CRR, partial(ridge, 0.0, (1, 8), 3), 2, 2, noise=ONE),
    Method("wcrr", WCRR, partial(ridge, 1.0, (1, 8), 3, LEVELS, learn_knots=True), 2, 2),
    Method("relu", RELU, partial(relu, (1, 8), 3), 2, 2, noise=ONE),
    Method("dncnn", DNCNN, partial(Dncnn, 4, 3), 2, 2),
)
PUBLISHED: dict[str, Any] = {"channels": (1, 4, 8, 60), "kernel_size": 5, "learn_knots": True}
LARGE: dict[str, Any] = {"channels": (1, 80), "kernel_size": 9, "learn_knots": True}
FULL = (
    Method("crr", CRR, partial(ridge, 0.0, **LARGE), 6000, 128, 40, ONE),
    Method("wcrr", WCRR, partial(ridge, 1.0, noise=LEVELS, **LARGE), 6000, 128, 64),
    Method("wcrr_stack", WCRR + ", three layers", partial(ridge, 1.0, noise=LEVELS, **PUBLISHED), 6000, 128, 64),
    Method("relu", RELU, partial(relu, (1, 80), 9), 6000, 128, 40, ONE),
    Method("dncnn", DNCNN, partial(Dncnn, 64, 17, 1e-3), 20000, 128),
)
PRESETS = {"small": SMALL, "full": FULL, "quick": QUICK}
"""Methods by preset; those of ``full`` have the published numbers of filters, and learn where knots lie."""
