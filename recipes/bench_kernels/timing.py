"""Interleaved timing: medians and quartiles of candidates that take turns, so that a noisy machine disturbs all alike.

One thread: process CPU time, in which other jobs do not count. Several threads, or a CUDA device: wall clock. With
several threads, samples during which other processes took more than STOLEN of a core are left out where enough remain.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Setting

SAMPLE = 0.02
"""Seconds that one sample lasts at least; short calls are repeated."""
SLOW = 1.0
"""Calls of more seconds are sampled three times only."""
STOLEN = 0.15
FEWEST = 3


@dataclass(frozen=True)
class Timed:
    """Something to be timed: where calls happen, the call, and whether it returns its seconds itself."""

    context: Callable[[], AbstractContextManager[Any]]
    call: Callable[[], Any]
    own_clock: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    first_quartile: float
    third_quartile: float
    samples: int

    @classmethod
    def of(cls, samples: list[tuple[float, float]]) -> Timing:
        """Summary of (seconds, stolen cores) pairs."""
        quiet = [seconds for seconds, stolen in samples if stolen <= STOLEN]
        kept = quiet if len(quiet) >= FEWEST else [seconds for seconds, _ in samples]
        first, median, third = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
        return cls(median, first, third, len(kept))


class Stopwatch:
    """Seconds of ``calls`` calls, by the clock that fits the setting."""

    def __init__(self, setting: Setting) -> None:
        self.on_cuda = setting.device == "cuda"
        self.shared = setting.threads > 1 and not self.on_cuda
        self.clock = time.perf_counter if self.shared or self.on_cuda else time.process_time

    def sample(self, call: Callable[[], Any], calls: int) -> tuple[float, float]:
        """Seconds of one call, and cores that other processes took meanwhile."""
        others, wall = self._others(), time.perf_counter()
        began = self._now()
        for _ in range(calls):
            call()
        seconds = self._now() - began
        stolen = (self._others() - others) / (time.perf_counter() - wall) if self.shared else 0.0
        return seconds / calls, stolen

    def _now(self) -> float:
        if self.on_cuda:
            torch.cuda.synchronize()
        return self.clock()

    def _others(self) -> float:
        """CPU seconds that all other processes have used since the machine began, where Linux says so."""
        statistics_file = Path("/proc/stat")
        if not self.shared or not statistics_file.exists():
            return 0.0
        user, nice, system, _, _, *rest = map(int, statistics_file.read_text().split("\n", 1)[0].split()[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def interleaved(
    timed: Mapping[str, Timed], setting: Setting, rounds: int, tick: Callable[[], object]
) -> dict[str, Timing]:
    """Time everything in turns, in a new order each round; ``tick`` is called after each sample.

    All were called before, so that nothing is compiled or imported here.
    """
    watch = Stopwatch(setting)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    calls: dict[str, int] = {}
    order, shuffle = list(timed), random.Random(0).shuffle  # noqa: S311
    gc.collect()
    for turn in range(rounds):
        shuffle(order)
        for name in order:
            entry = timed[name]
            slow = bool(samples[name]) and samples[name][0][0] > SLOW
            if not (slow and len(samples[name]) >= FEWEST):
                with entry.context():
                    if entry.own_clock:
                        samples[name].append((entry.call(), 0.0))
                    else:
                        if turn == 0:
                            once, _ = watch.sample(entry.call, 1)
                            calls[name] = max(1, int(SAMPLE / max(once, 1e-7)))
                        samples[name].append(watch.sample(entry.call, calls[name]))
            tick()
    return {name: Timing.of(found) for name, found in samples.items()}
