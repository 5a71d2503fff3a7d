"""Backends: what computes the operators, which of them work here, and which one is used.

``eager`` is plain torch and works everywhere; ``numba`` holds the kernels for processors, ``triton`` those for CUDA
devices. Without a choice the fastest one that works is taken for each device; it computes the same values and winners,
so the choice is one of speed. Choose another one for a block, or by the environment variable MORPHLIGHTNING_BACKEND:

    with morphlightning.backends.use("eager"):
        y = layer(x)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.interfaces import ActiveGraph
from morphlightning.ops import eager
from morphlightning.ops.geometry import Geometry

VARIABLE = "MORPHLIGHTNING_BACKEND"
_ACCELERATED = {"numba": ("cpu", "morphlightning.ops.cpu"), "triton": ("cuda", "morphlightning.ops.gpu")}
NAMES = ("eager", *_ACCELERATED)

_out_of_use: dict[str, str] = {}
_chosen: ContextVar[str | None] = ContextVar("backend", default=None)


class Backend(Protocol):
    """What a backend must offer; ``eager`` is the reference, equal to it bit for bit in values and winners.

    ``morphlightning.ops.eager`` documents each function.
    """

    def value(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        """Maxima alone."""
        ...

    def indices(self, x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Maxima, winners and, on request, gaps to the runner-up."""
        ...

    def scatter(
        self, gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry, want_x: bool, want_w: bool
    ) -> tuple[Tensor, Tensor]:
        """Messages to winners."""
        ...

    def touches(self, gy: Tensor, arg: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
        """Number of messages that each weight won."""
        ...

    def active(self, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, eps: float) -> ActiveGraph:
        """The graph of candidates within eps of their maximum."""
        ...

    def project(
        self, u: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, tau: float, count: bool
    ) -> tuple[Tensor, Tensor]:
        """Pseudo-gradients of w that take each maximum to y - tau u, and touch counts."""
        ...


def available() -> dict[str, str]:
    """Backends by name: ``"available"``, or the reason why one is not."""
    return {"eager": "available", **{name: _load(name)[1] for name in _ACCELERATED}}


def current(device: str | torch.device = "cpu") -> str:
    """The backend that computes on ``device``: the chosen one where it is made for it, else the fastest that works."""
    kind = torch.device(device).type
    chosen = _chosen.get() or _from_environment()
    if chosen is not None and (chosen == "eager" or _works_on(chosen, kind)):
        return chosen
    return _fastest(kind)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Compute with the backend ``name`` inside the block, on the devices that it is made for.

    Raises:
        ConfigError: There is no such backend, or it does not work here.
    """
    _check(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_for(x: Tensor) -> Backend:
    """The backend that computes for tensors like x."""
    name = current(x.device)
    return cast(Backend, eager if name == "eager" else _load(name)[0])


def fall_back(name: str, reason: str) -> None:
    """Take the backend ``name`` out of use for the rest of the process, because of ``reason``."""
    _out_of_use[name] = reason
    _load.cache_clear()
    _fastest.cache_clear()


@cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """The module of a backend, or None and the reason why it cannot be used."""
    if name in _out_of_use:
        return None, _out_of_use[name]
    try:
        module = import_module(_ACCELERATED[name][1])
    except Exception as error:  # whatever keeps it from loading, eager goes on
        return None, f"{type(error).__name__}: {error}"
    reason: str = module.unavailable()
    return (None, reason) if reason else (module, "available")


@cache
def _fastest(kind: str) -> str:
    return next((name for name in _ACCELERATED if _works_on(name, kind)), "eager")


def _works_on(name: str, kind: str) -> bool:
    return _ACCELERATED[name][0] == kind and _load(name)[0] is not None


@cache
def _from_environment() -> str | None:
    name = os.environ.get(VARIABLE)
    if name:
        _check(name)
    return name or None


def _check(name: str) -> None:
    """Raise ConfigError where ``name`` is not a backend that works."""
    if name not in NAMES:
        raise ConfigError(f"unknown backend {name!r}, from use() or {VARIABLE}; there are {', '.join(NAMES)}")
    reason = available()[name]
    if reason != "available":
        raise ConfigError(f"backend {name!r} does not work here: {reason}; `morphlightning doctor` shows all of them")
