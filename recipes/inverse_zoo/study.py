"""Tuning on images of its own, then one run on the test images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from images import Images
from methods import Method, Solve
from problems import Problem, psnr
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from morphlightning.inverse import Solution, UnrolledProximalGradient

ROUGH, FINE = 3e-4, 1e-4
"""Tolerances of tuning and testing."""


@dataclass(frozen=True)
class Outcome:
    """What a method made of the test images of a problem, one value an image.

    Attributes:
        chosen: The settings that tuning chose.
        guarantee: What the solver says of its convergence.
        history: Residuals, (iterations, N), or None.
    """

    problem: str
    method: str
    chosen: str
    guarantee: str
    x: Tensor
    psnr: list[float]
    ssim: list[float]
    iterations: list[int]
    seconds: float
    history: Tensor | None = None

    def mean(self, what: str) -> float:
        """Over images."""
        return statistics.fmean(getattr(self, what))


@dataclass(frozen=True)
class Study:
    """One problem, with data for tuning and testing."""

    problem: Problem
    images: Images
    max_iterations: int

    def measured(self, clean: Tensor, seed: int) -> Tensor:
        return self.problem.measure(clean, torch.Generator().manual_seed(seed))

    def start(self) -> Outcome:
        """No reconstruction."""
        return self._timed("start", "", "", lambda y, start: start)

    def run(self, method: Method) -> Outcome:
        """Tune, then test."""
        data = self.measured(self.images.tune, 1)

        def quality(settings: dict[str, float]) -> float:
            solve, _ = self._build(method, settings, ROUGH, self.max_iterations // 2)
            return statistics.fmean(psnr(solve(data, start=self.problem.start(data)).x, self.images.tune))

        chosen = climb(method, quality)
        solve, guarantee = self._build(method, chosen, FINE, self.max_iterations)
        return self._timed(method.name, ", ".join(f"{k} {v:.2g}" for k, v in chosen.items()), guarantee, solve)

    def trained(self, network: UnrolledProximalGradient) -> Outcome:
        """Test an unrolled network."""
        about = f"steps by squared norm: {', '.join(f'{2 * float(r.sigmoid()):.2f}' for r in network.raw_steps)}"
        return self._timed("unrolled", about, network.guarantee, network, len(network.proximals))

    def _build(
        self, method: Method, settings: dict[str, float], tolerance: float, max_iterations: int
    ) -> tuple[Solve, str]:
        operator = self.problem.operator
        return method.build(operator, tolerance=tolerance, max_iterations=max_iterations, **settings)

    @torch.no_grad()
    def _timed(
        self, name: str, chosen: str, guarantee: str, solve: Callable[..., Solution | Tensor], steps: int = 0
    ) -> Outcome:
        clean = self.images.test
        data = self.measured(clean, 2)
        start = self.problem.start(data)
        began = time.process_time()
        found = solve(data, start=start)
        seconds = (time.process_time() - began) / len(clean)
        x, iterations, history = found, [steps] * len(clean), None
        if isinstance(found, Solution):
            x, iterations, history = found.x, found.iterations.tolist(), found.history
        assert isinstance(x, Tensor)
        similar = [float(structural_similarity_index_measure(a[None].clamp(0, 1), b[None], data_range=1.0))
                   for a, b in zip(x, clean, strict=True)]  # fmt: skip
        quality = psnr(x, clean)
        return Outcome(
            self.problem.name, name, chosen, guarantee, x, quality, similar, iterations, seconds, history
        )  # fmt: skip


def climb(method: Method, quality: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """Settings none of whose neighbours on the ladders is better."""
    place = {name: start for name, (_, start) in method.ladders.items()}
    known: dict[tuple[int, ...], float] = {}

    def value(at: dict[str, int]) -> float:
        key = tuple(at.values())
        if key not in known:
            known[key] = quality({name: method.ladders[name][0][i] for name, i in at.items()})
        return known[key]

    moved = True
    while moved:
        moved = False
        for name, (steps, _) in method.ladders.items():
            for way in (1, -1):
                while 0 <= place[name] + way < len(steps) and value(place | {name: place[name] + way}) > value(place):
                    place[name] += way
                    moved = True
    return {name: method.ladders[name][0][i] for name, i in place.items()}
