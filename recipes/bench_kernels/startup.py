"""What it costs to begin: the first call of a process, and the way from a user's call to the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.nn.functional as F
from cases import Candidate, Case, Setting, ours
from dense import LINEAR, layer_of, operands

from morphlightning import backends
from morphlightning.functional import dilation
from morphlightning.ops.geometry import Dense

CACHES = ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")


def startup(setting: Setting) -> Iterator[Case]:
    yield overhead_case(setting)
    yield first_call_case(setting)


def overhead_case(setting: Setting) -> Case:
    """So small that the call itself is what takes time."""
    x, w = operands(setting, 8, 16, 32)
    kernel, layer = backends.backend_for(x), layer_of(x, w)
    candidates = [
        *ours(setting, "backend's function alone", lambda: kernel.value(x, w, Dense())),
        *ours(setting, "dilation", lambda: dilation(x, w), x, w, every_backend=True),
        *ours(setting, "layer Dilation", lambda: layer(x), x, layer.weight),
        Candidate(LINEAR, lambda: F.linear(x, w), (x, w), "other"),
    ]
    return Case("overhead, 8 x 32 -> 16", LINEAR, candidates, x.numel() * w.shape[0])


def first_call_case(setting: Setting) -> Case:
    """CPU time of the first training step in a fresh process, imports that it causes included."""
    candidates = []
    for backend in setting.backends():
        if backend != "eager":
            candidates += [
                Candidate(f"empty cache ({backend})", from_empty_cache(setting, backend), (), "ours", own_clock=True),
                Candidate(f"filled cache ({backend})", from_filled_cache(setting, backend), (), "ours", own_clock=True),
            ]
    eager = Candidate("eager", lambda: first_call(setting, "eager"), (), "ours", own_clock=True)
    return Case("first call of a process", "eager", [*candidates, eager], modes=("forward",))


def first_call(setting: Setting, backend: str, cache: str | None = None) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "MORPHLIGHTNING_CACHE_DIR"}
    environment |= {"MORPHLIGHTNING_BACKEND": backend} | (dict.fromkeys(CACHES, cache) if cache else {})
    command = [sys.executable, str(Path(__file__).with_name("first_call.py")), setting.device]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def from_empty_cache(setting: Setting, backend: str) -> Callable[[], float]:
    def run() -> float:
        with TemporaryDirectory() as cache:
            return first_call(setting, backend, cache)

    return run


def from_filled_cache(setting: Setting, backend: str) -> Callable[[], float]:
    cache = TemporaryDirectory()

    def run() -> float:
        if not os.listdir(cache.name):
            first_call(setting, backend, cache.name)
        return first_call(setting, backend, cache.name)

    return run
