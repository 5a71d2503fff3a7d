"""What an iteration costs: blocks of iterations of all methods in turns, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from harness import Shift, autoencoder, warm_up, without_garbage_collection
from images import Images
from methods import build
from ways import Way

STEP = "Adam"
"""What the others are compared with."""
COSTED = {
    "SGD": Way.of("sgd", lr=10.0, schedule="constant", weight_decay=0.0),
    STEP: Way.of("adam", lr=1e-3, schedule="constant", weight_decay=0.0),
    "Adam + wd": Way.of("adam", lr=1e-3, schedule="constant", weight_decay=1e-4),
    "L-BFGS": Way.of("lbfgs", weight_decay=1e-4),
    "BADMM": Way.of("badmm", order="ZXWM", mu=3.0, tau_x=1.9, ridge=100.0),
    "BADMM XZWM": Way.of("badmm", order="XZWM", mu=3.0, tau_x=1.9, ridge=100.0),
    "lifted MM": Way.of("mm", mu=3.0, tau_x=1.9, ridge=100.0),
}
NOISE = 0.3


@dataclass(frozen=True)
class Cost:
    """Seconds of processor time of one iteration, of each block; the same position is the same turn."""

    blocks: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.blocks)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.blocks, n=4, method="inclusive")
        return first, third

    def times(self, other: Cost) -> float:
        """This median over the other one."""
        return self.median / other.median


def costs(images: Images, turns: int, block: int, ways: Mapping[str, Way] = COSTED) -> dict[str, Cost]:
    """Time blocks of so many iterations; each turn in a new order. A method goes on from where its last block ended."""
    train, iterations = images.task(NOISE, 0).train, turns * block
    methods = {}
    for name, way in ways.items():
        network = autoencoder(images.pixels, images.hidden, 0)
        x, y = Shift.of(train, way.centred).apply(train)
        warm_up(way, network, x, y)
        methods[name] = build(way, network, x, y, iterations)
        methods[name].iterate()  # what is computed once belongs to no block
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle  # noqa: S311
    with without_garbage_collection():
        for _ in range(turns):
            shuffle(order)
            for name in order:
                began = time.process_time()
                for _ in range(block):
                    methods[name].iterate()
                seconds[name].append((time.process_time() - began) / block)
    return {name: Cost(tuple(found)) for name, found in seconds.items()}
