r"""Interval propagation: boxes that hold all outputs of a network for all inputs of a box.

Layer by layer, each output is bounded over the box of what comes in. A box holds what a layer makes of the box before
it twice over: in exact arithmetic, and as computed in the dtype of the box. Hard morphological layers need next to no
slack for that: the rounding of a sum is increasing, so ends that are computed as the layer computes hold all computed
outputs as they are, and one unit in the last place more holds the exact ones.

Derived here; docs/guarantees.md has the proofs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from morphlightning.errors import NotCertifiable
from morphlightning.guarantees.robustness.boxes import Box
from morphlightning.lipschitz.spec import kinds_of, layers_of, place, same_forward

M = TypeVar("M", bound=nn.Module)
Rule = Callable[[Any, Box], Box]
_RULES: dict[type[nn.Module], Rule] = {}


def register_interval(*kinds: type[nn.Module]) -> Callable[[Callable[[M, Box], Box]], Any]:
    """Decorate a rule that bounds the outputs of modules of these classes, and of subclasses that keep their forward.

    The rule takes the module and the box of its inputs and returns a box of its outputs, exact and as computed. It
    raises NotCertifiable where there is none. A later rule for a class replaces the earlier.
    """

    def decorate(rule: Callable[[M, Box], Box]) -> Any:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return decorate


@torch.no_grad()
def propagate(network: nn.Module, box: Box) -> Box:
    """A box that holds the outputs of a network for all inputs of a box.

    Args:
        network: A Sequential, nested ones too, or one layer, of classes with rules (:func:`register_interval`).
        box: Inputs (batch, ...).

    Returns:
        Outputs, in the dtype that the network computes in; ends of a NaN hold nothing.

    Raises:
        NotCertifiable: A layer without a rule, or in training mode where that matters; the message names it.
    """
    with torch.autocast(box.lower.device.type, enabled=False):
        for name, layer in layers_of(network):
            try:
                box = _rule_of(layer)(layer, box)
            except NotCertifiable as error:
                raise NotCertifiable(f"{place(name, layer)}: {error}") from error
    return box


def _rule_of(layer: nn.Module) -> Rule:
    for kind in kinds_of(layer):
        if kind in _RULES and same_forward(layer, kind):
            return _RULES[kind]
    raise NotCertifiable(
        "no rule bounds its outputs over a box; give its class one with "
        "morphlightning.guarantees.robustness.register_interval, or ask for method='lipschitz'"
    )


def check_evaluation(module: nn.Module) -> None:
    """Raise NotCertifiable where a module, in training mode, depends on chance or on the batch."""
    if module.training:
        raise NotCertifiable("in training mode it depends on chance or on the batch; call eval() first")
