"""Ways to reconstruct, each with the ladders on which its settings are tuned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from morphlightning.errors import ConfigError, TrainingWarning
from morphlightning.inverse import Averaged, PnPADMM, PnPForwardBackward, Solution, TotalVariation, Variational
from morphlightning.inverse.operators import LinearOperator
from morphlightning.models import RidgeRegularizerDenoiser

Solve = Callable[..., Solution]
Build = Callable[..., tuple[Solve, str]]
Ladder = tuple[float, ...]


@dataclass(frozen=True)
class Method:
    """A solver for any problem.

    Attributes:
        name: Of the method.
        about: What it is, in words.
        ladders: Values of each setting, and where tuning starts.
        build: ``build(operator, tolerance=..., **settings)``: a function from data to solutions, and its guarantee.
    """

    name: str
    about: str
    ladders: Mapping[str, tuple[Ladder, int]]
    build: Build


def ladder(start: float, ratio: float, down: int, up: int) -> tuple[Ladder, int]:
    """Values around a start, a ratio apart."""
    return tuple(start * ratio**k for k in range(-down, up + 1)), down


def total_variation() -> Method:
    def build(operator: LinearOperator, weight: float, **settings: Any) -> tuple[Solve, str]:
        solver = TotalVariation(operator, weight, **settings)
        return solver, solver.guarantee

    return Method("TV", "total variation", {"weight": ladder(1.6e-3, 1.6, 8, 8)}, build)


def ridge(name: str, about: str, checkpoint: Path) -> Method:
    """A regularizer that was trained to denoise, by denoise_train400."""
    if not checkpoint.is_file():
        raise ConfigError(f"{name}: no checkpoint {checkpoint}; recipes/denoise_train400 trains and writes one")
    model = RidgeRegularizerDenoiser.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    # the noise level is a scale here, which is tuned and may leave the range of training
    warnings.filterwarnings("ignore", message="noise level", category=TrainingWarning)
    if model.regularizer.scaling is None:

        def build(operator: LinearOperator, weight: float, **settings: Any) -> tuple[Solve, str]:
            solver = Variational(operator, model, weight, **settings)
            return solver, solver.guarantee

        return Method(name, about, {"weight": ladder(0.1, 1.6, 8, 8)}, build)

    def build_scaled(operator: LinearOperator, strength: float, sigma: float, **settings: Any) -> tuple[Solve, str]:
        solver = Variational(operator, model, strength / sigma, **settings)
        return partial(solver, sigma=sigma), solver.guarantee

    # far out, weight R grows as weight sigma |x|: that product and sigma can be tuned one by one
    return Method(name, about, {"strength": ladder(2e-3, 2.0, 6, 6), "sigma": ladder(8 / 255, 2.0, 3, 2)}, build_scaled)


def forward_backward(denoiser: Averaged) -> Method:
    """How strongly the denoiser acts against a step of 1.9/||A||^2; above 1/2, its most, steps shrink instead."""

    def build(operator: LinearOperator, strength: float, **settings: Any) -> tuple[Solve, str]:
        weaker = Averaged(denoiser.network, min(strength, 0.5))
        step = 1.9 * weaker.weight / strength / operator.norm_bound() ** 2
        solver = PnPForwardBackward(operator, weaker, step, **settings)
        return solver, solver.guarantee

    return Method("PnP-FBS", "forward-backward, 1-Lipschitz network", {"strength": ladder(0.2, 1.6, 4, 6)}, build)


def admm(denoiser: Averaged) -> Method:
    """The weight of the denoiser, over ||A||^2."""

    def build(operator: LinearOperator, weight: float, **settings: Any) -> tuple[Solve, str]:
        solver = PnPADMM(operator, denoiser, weight * operator.norm_bound() ** 2, **settings)
        return solver, solver.guarantee

    return Method("PnP-ADMM", "ADMM, the same network", {"weight": ladder(0.1, 1.6, 12, 6)}, build)
