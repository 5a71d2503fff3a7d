"""Initializers that learn from data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.errors import DataError
from morphlightning.interfaces import Initializer, SiteBatch, SiteSpec
from morphlightning_plugins.initializers.uniform import Upper

_CHUNK = 1 << 22
"""Differences y - x that are looked at together."""
_LAST = 2**63 - 1


@dataclass(frozen=True)
class Residual(Initializer):
    r"""Each weight is a quantile over the training samples of wanted output minus input.

    :math:`w_{ij} = Q_q \{ y_{bi} - x_{bj} : b \}`, for erosions x - y by duality. With q = 0, the minimum, dilation
    by w is the greatest dilation that exceeds no target, and it attains them all if any does; it takes one pass.

    A quantile q > 0, the least difference that a share q does not exceed, forgives noise; 0.01 to 0.05 are sensible. It
    takes a second pass, which counts in ``bins`` equal bins from the least to the greatest difference: off by at most
    one bin, with 8 bytes for each weight and bin.

    Source: the greatest solution of max-plus equations (residuation, Cuninghame-Green); derived in
    docs/conventions.md, "Initializers".
    """

    data: ClassVar[Literal["none", "inputs", "pairs"]] = "pairs"
    reduce: ClassVar[Mapping[str, Literal["sum", "min", "max", "gather"]]] = {
        "low": "min",
        "high": "max",
        "counts": "sum",
    }
    quantile: float = 0.0
    bins: int = 64

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must lie in [0, 1], got {self.quantile}")
        if self.bins < 1:
            raise ValueError(f"bins must be >= 1, got {self.bins}")

    @property
    def passes(self) -> int:
        """One for the range, another one for the counts of a quantile."""
        return 2 if self.quantile else 1

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """As ``upper``, until there are data."""
        return Upper().fill(spec, generator)

    def begin(self, spec: SiteSpec, w: Tensor, previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The range of the differences, then their counts."""
        if not previous:
            return {"low": torch.full_like(w, math.inf), "high": torch.full_like(w, -math.inf), "counts": _none(w)}
        counts = torch.zeros(w.numel() * (self.bins + 1), dtype=torch.int64, device=w.device)
        return {**previous, "counts": counts}

    def update(self, state: dict[str, Tensor], batch: SiteBatch) -> None:
        """Widen the range, or count."""
        shape = state["low"].shape
        if not len(state["counts"]):
            state["low"] = torch.minimum(state["low"], batch.least().view(shape))
            if self.quantile:  # else nobody asks for it
                state["high"] = torch.maximum(state["high"], batch.greatest().view(shape))
            return
        together = max(1, _CHUNK // state["low"].numel())
        for x, y in zip(batch.x.split(together), batch.y.split(together), strict=True):
            self._count(state, x.permute(1, 2, 0), y.permute(1, 2, 0))

    def _count(self, state: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
        """Count differences by bins, rows on the last axis; the bin behind the last is for inputs that are absent."""
        low, high = (state[name].view(*y.shape[:2], x.shape[1], 1) for name in ("low", "high"))
        scale = torch.where(high > low, self.bins / (high - low), 0)
        absent = x == -math.inf
        place = (y.unsqueeze(2) - x.masked_fill(absent, 0).unsqueeze(1) - low).mul_(scale)
        place = place.nan_to_num_().clamp_(0, self.bins - 1).long()
        place = place.masked_fill_(absent.unsqueeze(1), self.bins)
        place += torch.arange(low.numel(), device=low.device).view(low.shape) * (self.bins + 1)
        state["counts"].scatter_add_(0, place.flatten(), place.new_ones(1).expand(place.numel()))

    def finish(self, spec: SiteSpec, w: Tensor, state: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """The quantile; weights whose input was never there keep their start."""
        low, high = state["low"], state["high"]
        found = low
        if self.quantile:
            counts = state["counts"].view(*low.shape, self.bins + 1)[..., :-1]
            upto = counts.cumsum(-1)
            rank = self.quantile * upto[..., -1:].double()
            place = (upto < rank).sum(-1, keepdim=True).clamp_max(self.bins - 1)
            beyond = (upto.gather(-1, place) - rank) / counts.gather(-1, place).clamp_min(1)
            share = (place + 1 - beyond).squeeze(-1) / self.bins
            found = low + share.to(low.dtype) * (high - low)
        return torch.where(low.isfinite(), found, w)


@dataclass(frozen=True)
class Prototype(Initializer):
    r"""Each unit starts at a training sample of its own: w = -p in dilations, w = p in erosions.

    A dilation then gives :math:`\max_j x_j - p_j`, by how much x exceeds its prototype p somewhere; an erosion
    :math:`\min_j x_j - p_j`, the height at which p fits below x. Both are 0 at x = p. Windows take patches
    that lie inside the image. The samples are drawn at random, all different.

    Source: derived in docs/conventions.md, "Initializers".
    """

    data: ClassVar[Literal["none", "inputs", "pairs"]] = "inputs"
    reduce: ClassVar[Mapping[str, Literal["sum", "min", "max", "gather"]]] = {"rows": "gather", "draw": "gather"}

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """As ``upper``, until there are data."""
        return Upper().fill(spec, generator)

    def begin(self, spec: SiteSpec, w: Tensor, previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No sample yet."""
        units = spec.shape[0] // spec.groups
        rows = w.new_zeros(units, spec.groups, w[0].numel())
        return {"rows": rows, "draw": torch.full((units,), _LAST, device=w.device)}

    def update(self, state: dict[str, Tensor], batch: SiteBatch) -> None:
        """Keep the samples with the least random numbers."""
        units = len(state["draw"])
        hopeful = (batch.draw < state["draw"].max()) & (batch.x > -math.inf).all(-1).all(-1)
        rows = torch.cat([state["rows"], batch.x[hopeful]])
        draw = torch.cat([state["draw"], batch.draw[hopeful]])
        state["rows"], state["draw"] = _least(rows, draw, units)

    def finish(self, spec: SiteSpec, w: Tensor, state: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Minus the samples, in groups of units."""
        units = spec.shape[0] // spec.groups
        rows, draw = _least(state["rows"], state["draw"], units)
        if found := int((draw == _LAST).sum()):
            raise DataError(
                f"prototype: {units} units need as many different samples, the data hold {units - found}; "
                "pass more data, or build the layer with fewer units"
            )
        return -rows.transpose(0, 1).reshape(spec.shape)


def _least(rows: Tensor, draw: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` different rows with the least draws, in their order; draw _LAST marks places that are free."""
    taken = draw < _LAST
    different, which = torch.unique(rows[taken], dim=0, return_inverse=True)
    least = torch.full((len(different),), _LAST, device=draw.device).scatter_reduce(0, which, draw[taken], "amin")
    least, order = least.sort()
    free = max(0, count - len(least))
    kept = torch.cat([different[order[:count]], rows.new_zeros(free, *rows.shape[1:])])
    return kept, torch.cat([least[:count], least.new_full((free,), _LAST)])


def _none(w: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=w.device)
