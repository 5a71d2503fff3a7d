"""Starts and settings from which max-plus weights will not learn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from morphlightning.interfaces import Hardenable
from morphlightning.layers.base import MorphLayer

LEAST_SHARE = 1e-6
"""Of a message, that still moves a weight: adaptive optimizers do not look at the size."""


def dense_layers(module: nn.Module) -> Iterator[tuple[str, MorphLayer]]:
    """Names and dense max-plus layers below ``module`` that are trained."""
    for name, layer in module.named_modules():
        if isinstance(layer, MorphLayer) and layer.weight.ndim == 2 and layer.weight.requires_grad:
            yield name, layer


def decayed(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of max-plus layers whose weights the optimizer decays, towards 0 where they do not vanish but win."""
    groups = [group for group in optimizer.param_groups if group.get("weight_decay")]
    pulled = {id(parameter) for group in groups for parameter in group["params"]}
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, MorphLayer)]
    return [name for name, layer in layers if id(layer.weight) in pulled]


@torch.no_grad()
def all_units_equal(layer: MorphLayer) -> bool:
    """Whether a dense layer has several units, all with the same weights: they choose and learn alike."""
    w = layer.effective_weight
    return len(w) > 1 and bool((w == w[:1]).all())


@torch.no_grad()
def few_can_win(layer: MorphLayer, x: Tensor) -> bool:
    """Whether the spread of a dense layer's weights decides who wins, and not its inputs x (..., in).

    An input contends if its weight lies within two standard deviations of x below the largest of the unit, and further
    in a soft layer, down to a share of a millionth of the message. Too few do where in the median unit less than a
    quarter contend, although the weights vary (by the middle half) more than that: a structured start, as the identity,
    keeps the others out on purpose.
    """
    w = layer.effective_weight.float()
    deviation = x.float().std(correction=0)
    if not 0 < deviation < torch.inf:
        return False
    reach = 2 * deviation + (-math.log(LEAST_SHARE) / layer.beta if isinstance(layer, Hardenable) else 0)
    contend = (w >= w.amax(1, keepdim=True) - reach).float().mean(1).median()
    ordered = w.masked_fill(~layer.mask, 0).sort(1).values
    quarter = w.shape[1] // 4
    spread = (ordered[:, -1 - quarter] - ordered[:, quarter]).median() / 1.35  # a deviation, were they normal
    return bool((contend < 0.25) & (spread > reach))
