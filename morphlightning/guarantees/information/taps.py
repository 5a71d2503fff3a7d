"""Which taps win: what data tell about each weight of a max-plus layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from morphlightning.backends import backend_for
from morphlightning.functional.dense import erosion
from morphlightning.interfaces import Hardenable
from morphlightning.layers import GumbelDilation, MorphLayer
from morphlightning.ops.geometry import Dense


class Taps(NamedTuple):
    r"""What data tell about the weights of a layer of maxima (of an erosion: minima), in the weight's shape.

    Attributes:
        wins: How many maxima each tap decided, int64; among equal candidates the first counts.
        ceiling: The largest value that each weight could have, the others as they are, without an output of the data
            growing (of an erosion: falling): :math:`\min_n (y_{ni} - x_{nj})` for dilations, float64; inf where the
            input never was there. Of a tap that wins somewhere it is the weight itself.
    """

    wins: Tensor
    ceiling: Tensor

    @classmethod
    def none(cls, layer: MorphLayer) -> Self:
        """Of no data."""
        shape, device = layer.weight.shape, layer.weight.device
        wins = torch.zeros(shape, dtype=torch.int64, device=device)
        return cls(wins, torch.full(shape, math.inf, dtype=torch.float64, device=device))

    def joined(self, other: Taps) -> Taps:
        """Of both data together."""
        return Taps(self.wins + other.wins, torch.minimum(self.ceiling, other.ceiling))

    @property
    def winning(self) -> Tensor:
        """Which taps decided a maximum."""
        return self.wins > 0


@torch.no_grad()
def observe(layer: MorphLayer, x: Tensor) -> Taps:
    """What inputs x of a layer tell about its weights; computed in the dtype of x and the weight, at least float32."""
    weight = layer.effective_weight.flatten(1)
    candidates = layer.candidates(x).to(torch.promote_types(weight.dtype, torch.float32))
    rows, groups, _ = candidates.shape
    flat, where = candidates.flatten(1), Dense(groups)
    weight = weight.to(flat.dtype)
    backend = backend_for(flat)
    best, winner, _ = backend.indices(flat, weight, where, False)
    wins = backend.touches(torch.ones_like(best), winner, weight.shape, where)
    y = best.view(rows, groups, -1).permute(1, 2, 0).contiguous()
    ceiling = erosion(y, candidates.permute(1, 2, 0).contiguous())  # over the rows, with x in place of the weights
    shape = layer.weight.shape
    return Taps(wins.round().long().view(shape), ceiling.double().reshape(shape))


def has_winners(layer: nn.Module) -> bool:
    """Whether a layer's outputs are single maxima or minima of inputs plus weights."""
    soft = isinstance(layer, Hardenable | GumbelDilation)
    return isinstance(layer, MorphLayer) and layer.op in ("dilation", "erosion", "pooling") and not soft


@contextmanager
def observed(network: nn.Module) -> Iterator[dict[str, Taps]]:
    """Observe all layers with winners below ``network`` while it runs; by name, joined over calls."""
    found: dict[str, Taps] = {}
    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, MorphLayer) and has_winners(layer):
            found[name] = Taps.none(layer)

            def see(layer: Any, args: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = found[name].joined(observe(layer, _samples(layer, args[0])))

            handles.append(layer.register_forward_pre_hook(see))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _samples(layer: MorphLayer, x: Tensor) -> Tensor:
    """Inputs (..., event) as (samples, *event)."""
    event = max(1, layer.weight.ndim - 1)
    return x.reshape(-1, *x.shape[x.ndim - event :])


@torch.no_grad()
def keep_winners(network: nn.Module, taps: Mapping[str, Taps], at_least: int = 1) -> int:
    """Mask the taps that win fewer than ``at_least`` maxima, in place; every unit keeps the one that wins most.

    With ``at_least=1`` no output on the observed data changes. A network with few taps is known by few bits.

    Args:
        network: What was observed.
        taps: By name of layer, from :func:`observed` or :func:`evidence`.
        at_least: Wins of a tap that stays.

    Returns:
        How many taps are left in these layers.
    """
    left = 0
    for name, seen in taps.items():
        layer: Any = network.get_submodule(name)
        wins = seen.wins.masked_fill(~layer.mask, -1).flatten(1)
        kept = (wins >= max(at_least, 1)).scatter(1, wins.argmax(1, keepdim=True), True)
        layer.mask &= kept.view_as(layer.mask)
        left += int(layer.mask.sum())
    return left
