r"""Networks whose logits move by no more than their weights.

One layer of maxima of inputs plus weights moves by at most the largest move of a weight, and passes on a move of its
inputs at most as it is. So of a chain of L such layers, with maps between them that are 1-Lipschitz in the sup norm,

.. math:: \|f(x; W') - f(x; W)\|_\infty \le \sum_{l=1}^L \max_{ij} |W'_{l,ij} - W_{l,ij}|

for every input x (the weight-Lipschitz lemma, derived in docs/guarantees.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.layers import Dilation, Erosion, MeanShift, MorphLayer, Shift, SignedDilation, SignedErosion
from morphlightning.layers.windows import WindowLayer
from morphlightning.lipschitz import certify

_DENSE: tuple[type[nn.Module], ...] = (Dilation, Erosion, SignedDilation, SignedErosion)
_WINDOWS = tuple(
    getattr(layers, f"{kind}{rank}d") for kind in ("Dilation", "Erosion", "MorphPool") for rank in (1, 2, 3)
)
_PAIRS = (layers.DilationErosion, *(getattr(layers, f"DilationErosion{rank}d") for rank in (1, 2, 3)))


class Stage(NamedTuple):
    """A layer of the chain, or two side by side.

    Attributes:
        name: As in the network.
        layers: Its layers of maxima or minima, by name.
    """

    name: str
    layers: dict[str, MorphLayer]


class TapChain(nn.Module):
    """A copy of a network for which the weight-Lipschitz lemma holds: in float64, in evaluation mode, on its device.

    Mean shifts are part of the weights: each is added to those of the dense layer before it (which then gives what was
    shifted), or else to those of the dense layer behind it.

    Args:
        network: A Sequential, nested ones too. Layers with weights: (signed) dilations and erosions, dense or windowed
            (channels joined by maxima), pairs of them side by side. Before the first of them any module without
            parameters and buffers; behind it those that are 1-Lipschitz in the sup norm.

    Raises:
        NotCertifiable: A layer for which the lemma was not derived; the message names it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        copied = copy.deepcopy(network).double().eval().requires_grad_(False)
        named = list(_flat(copied, ""))
        seen: set[int] = set()
        for name, layer in named:
            if id(layer) in seen and any(True for _ in layer.parameters()):
                raise _refusal(name, layer, "it comes twice, and the lemma counts each weight once")
            seen.add(id(layer))
        self.stages: list[Stage] = []
        self.sequence = nn.Sequential(*(layer for _, layer in _folded(named)))
        for name, layer in named:
            self._take(name, layer)
        if not self.stages:
            raise NotCertifiable("the network has no layer of maxima or minima, so no weight that could carry a bound")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs, in float64."""
        logits: Tensor = self.sequence(x.double())
        return logits

    @property
    def layers(self) -> dict[str, MorphLayer]:
        """All layers of maxima or minima, by name."""
        return {name: layer for stage in self.stages for name, layer in stage.layers.items()}

    def _take(self, name: str, layer: nn.Module) -> None:
        kind = type(layer)
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise _refusal(name, layer, "it has forward hooks, which may change what it computes")
        if kind in _PAIRS:
            pair: Any = layer
            parts = {f"{name}.dilation": pair.dilation, f"{name}.erosion": pair.erosion}
        elif kind in _DENSE or kind in _WINDOWS:
            parts = {name: layer}
        else:
            parts = {}
        for part in parts.values():
            if isinstance(part, WindowLayer) and part.windowing.merge != "max":
                raise _refusal(name, layer, "it adds channels up, so that moves of weights add up, too")
        if parts:
            self.stages.append(Stage(name, parts))
        elif kind is not MeanShift:  # which is part of the weights by now
            _check_plain(name, layer, behind=bool(self.stages))


def _flat(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():
            if child is not None:
                yield from _flat(child, f"{name}.{key}" if name else key)
    else:
        yield name, module


def _refusal(name: str, layer: nn.Module, why: str) -> NotCertifiable:
    where = f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
    return NotCertifiable(f"the weight-Lipschitz lemma was not derived for {where}: {why}")


def _check_plain(name: str, layer: nn.Module, behind: bool) -> None:
    """Raise unless a layer has nothing that was learned, and lets no move grow."""
    if type(layer) is Shift:
        return
    if any(True for _ in layer.parameters()):
        raise _refusal(
            name,
            layer,
            "its outputs are no maxima or minima of inputs plus weights, so they move by more than these do",
        )
    if any(True for _ in layer.buffers()):
        raise _refusal(name, layer, "it has buffers that may have been learned, and nothing is paid for them")
    if behind:
        try:
            constant = certify(layer, "linf").constant
        except NotCertifiable as error:
            raise _refusal(name, layer, f"it stands behind weights, and {error}") from error
        if constant > 1:
            raise _refusal(name, layer, f"it stands behind weights, and its Lipschitz constant is {constant:.6g}")


def _folded(named: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """The chain without mean shifts, which are added to weights in place."""
    for number, (name, layer) in enumerate(named):
        if type(layer) is not MeanShift:
            yield name, layer
            continue
        before = named[number - 1][1] if number else None
        behind = named[number + 1][1] if number + 1 < len(named) else None
        if type(before) in _DENSE:
            _fold(before, layer.mean[:, None])
        elif type(behind) in _DENSE:
            signs = [layer.mean, -layer.mean] if isinstance(behind, SignedDilation | SignedErosion) else [layer.mean]
            _fold(behind, torch.cat(signs))
        else:
            raise _refusal(name, layer, "its mean was learned, and neither neighbour is a dense layer that can take it")


@torch.no_grad()
def _fold(layer: Any, shift: Tensor) -> None:
    """Outputs, or inputs, minus a shift: dilations add their weights, erosions subtract them."""
    layer.weight.sub_(shift if layer.op == "dilation" else -shift)
