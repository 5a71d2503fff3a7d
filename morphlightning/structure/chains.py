"""Filters and the layer that reads them: found in a chain of modules, and made smaller together."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation, Erosion, MorphLayer
from morphlightning.layers.windows import WindowLayer
from morphlightning.models import MorphologicalClassifier

M = TypeVar("M", bound=nn.Module)
L = TypeVar("L", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DENSE = (nn.Linear, Dilation, Erosion)
_POINTWISE = (nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


@dataclass(frozen=True)
class Pair:
    """Two layers of a chain with nothing but pointwise modules and flattening between them.

    The first is an nn.Linear, a convolution that is flattened afterwards, a Dilation or an Erosion; the second an
    nn.Linear, a Dilation or an Erosion that reads what the first gives.

    Attributes:
        chain: Where both are.
        first: Position of the layer whose outputs are the filters.
        second: Position of the layer that reads them.
        filters: Their number.
        positions: Inputs of the second layer for each filter, next to each other; more than 1 for convolutions.
    """

    chain: nn.Sequential
    first: int
    second: int
    filters: int
    positions: int

    def keep(self, filters: Tensor) -> None:
        """Put smaller layers in the place of both; ``filters`` are sorted indices."""
        inputs = (filters[:, None] * self.positions + torch.arange(self.positions, device=filters.device)).flatten()
        self.chain[self.first] = select(self.chain[self.first], 0, filters)
        self.chain[self.second] = select(self.chain[self.second], 1, inputs)


def pairs(module: nn.Module) -> list[Pair]:
    """All pairs below ``module``, in its order; a layer that stands in two places belongs to none."""
    places = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    found = []
    for chain in module.modules():
        if type(chain) is nn.Sequential:
            layers = list(chain)
            for second, reader in enumerate(layers):
                pair = _pair_before(chain, layers, second)
                if pair and places[id(layers[pair.first])] == places[id(reader)] == 1:
                    found.append(pair)
    return found


def _pair_before(chain: nn.Sequential, layers: list[nn.Module], second: int) -> Pair | None:
    reader = layers[second]
    first, flattened = second - 1, False
    while first >= 0 and (type(layers[first]) in _POINTWISE or flattens(layers[first])):
        flattened |= flattens(layers[first])
        first -= 1
    if type(reader) not in _DENSE or first < 0 or not (_is_plain(reader) and _is_plain(layers[first])):
        return None
    before = layers[first]
    filters, inputs = _shape(before)[0], _shape(reader)[1]
    if type(before) in _DENSE and filters == inputs:
        return Pair(chain, first, second, filters, 1)
    if isinstance(before, _CONVOLUTIONS) and before.groups == 1 and flattened and inputs % filters == 0:
        return Pair(chain, first, second, filters, inputs // filters)
    return None


def flattens(module: nn.Module) -> bool:
    """Whether it makes (batch, features) of anything."""
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _shape(layer: nn.Module) -> torch.Size:
    return cast(Tensor, layer.weight).shape


def _is_plain(layer: nn.Module) -> bool:
    """Whether the weight is a parameter of the layer, not recomputed by somebody (pruning hooks, spectral norm)."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


@torch.no_grad()
def select(layer: L, axis: int, index: Tensor) -> L:
    """A copy with the outputs (axis 0) or inputs (axis 1) at ``index`` alone.

    Raises:
        ConfigError: An output of a max-plus layer would keep no weight.
    """
    smaller = copy.deepcopy(layer)
    for name in ("weight", "bias") if axis == 0 else ("weight",):
        if isinstance(old := getattr(layer, name, None), nn.Parameter):
            setattr(smaller, name, nn.Parameter(old.index_select(axis, index.to(old.device)), old.requires_grad))
    if isinstance(smaller, MorphLayer):
        smaller.mask = smaller.mask.index_select(axis, index.to(smaller.mask.device))
        smaller.site.allocate()
        empty = (~smaller.mask).flatten(1).all(1).nonzero()[:, 0].tolist()
        if empty:
            raise ConfigError(
                f"{type(layer).__name__}: output {empty[0]} would have no finite weight among the inputs kept "
                f"({len(empty)} such outputs); keep an input for each output"
            )
    kind = "channels" if isinstance(layer, (*_CONVOLUTIONS, WindowLayer)) else "features"
    setattr(smaller, f"{('out', 'in')[axis]}_{kind}", len(index))
    return smaller


def keep_filters(module: M, kept: Iterable[int] | Tensor) -> M:
    """A copy of ``module`` that has, of the filters of its last pair, those at ``kept`` alone.

    A pair is, in one nn.Sequential, an nn.Linear or a flattened convolution (or a Dilation or Erosion), then the
    nn.Linear, Dilation or Erosion that reads it; between them may stand activations without parameters, nn.Dropout and
    nn.Flatten. In a MorphologicalClassifier with ``head="max_plus"`` it is the head; its copy has ``head_units`` of the
    new size, so that its checkpoints load.

    Args:
        module: A chain, or a module with one somewhere inside; it is not changed.
        kept: Indices of filters, in any order; the copy has them in increasing order.

    Raises:
        ConfigError: There is no pair; an index is out of range, or there are none; an output would keep no weight.
    """
    smaller = copy.deepcopy(module)
    pair = last_pair("keep_filters", smaller)
    filters = torch.as_tensor(kept if isinstance(kept, Tensor) else list(kept)).unique()
    if len(filters) == 0 or filters.dtype != torch.int64 or filters[0] < 0 or filters[-1] >= pair.filters:
        raise ConfigError(
            f"keep_filters: kept={filters.tolist()}, expected indices, some of 0 to {pair.filters - 1} (of a mask, "
            "pass mask.nonzero())"
        )
    pair.keep(filters)
    if isinstance(smaller, MorphologicalClassifier) and smaller.head is pair.chain:
        smaller.save_hyperparameters({**smaller.hparams, "head_units": len(filters)})
    return smaller


def last_pair(where: str, module: nn.Module) -> Pair:
    """The last pair of ``module``.

    Raises:
        ConfigError: There is none.
    """
    found = pairs(module)
    if not found:
        raise ConfigError(
            f"{where}: {type(module).__name__} has no filters to keep; expected an nn.Sequential of an nn.Linear or a "
            "convolution with nn.Flatten, then activations without parameters if any, then the layer that reads them, "
            "such as the head of MorphologicalClassifier(head='max_plus')"
        )
    return found[-1]


def count_parameters(module: nn.Module) -> int:
    """How many numbers ``module`` has learned: entries of its parameters, without missing max-plus weights."""
    missing = sum(int((~layer.mask).sum()) for layer in module.modules() if isinstance(layer, MorphLayer))
    return sum(p.numel() for p in module.parameters()) - missing
