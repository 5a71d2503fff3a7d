"""Functions that splines start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.splines.table import SplineTable

Function = Callable[[Tensor], Tensor]
Start = Literal["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "zero"]
STARTS: dict[str, Function] = {
    "identity": lambda t: t.clone(),
    "relu": lambda t: t.clamp_min(0),
    "leaky_relu": lambda t: torch.where(t > 0, t, 0.01 * t),
    "absolute": lambda t: t.abs(),
    "soft_threshold": lambda t: t - t.clamp(-0.1, 0.1),
    "zero": lambda t: torch.zeros_like(t),
}
"""Named pointwise functions; the soft threshold is 0.1."""


def start(init: Start | Function | SplineTable) -> Function:
    """The function of knots (splines, K) that a spline starts from.

    Raises:
        ConfigError: init is no name of :data:`STARTS`, function or table.
    """
    if isinstance(init, SplineTable):
        return lambda knots: init(knots, channel_dim=0)
    if isinstance(init, str) and init in STARTS:
        return STARTS[init]
    if callable(init):
        return init
    raise ConfigError(f"init must be one of {', '.join(STARTS)}, a function or a SplineTable, got {init!r}")
