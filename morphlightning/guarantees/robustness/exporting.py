r"""From a network of additions and maxima to one in 16-bit integers, with the proof that nothing overflows.

The range of every number is followed from layer to layer, for all images: inputs z of a layer with
:math:`|z| \le X` and weights w give sums between the least and the largest of them; they must fit. A missing weight,
-inf, becomes the sentinel :math:`S = -32767 + X`: its sums do not overflow, for :math:`z + S \ge -32767`, and they
never win, if every output is above :math:`S + X` for all images, which is checked too. A finite weight below S is
replaced by S for the same reason, and that changes nothing. Derived here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import ConfigError, NotCertifiable, NotSupportedError
from morphlightning.guarantees.robustness.integers import IntegerLayer, IntegerNetwork, IntegerShift
from morphlightning.guarantees.robustness.intervals import check_evaluation
from morphlightning.lipschitz.spec import layers_of, place

LARGEST = torch.iinfo(torch.int16).max
Range = tuple[Tensor, Tensor]
"""Least and largest values for all images, int64: one of all features, or one for each (features,)."""
_KINDS: dict[type[nn.Module], tuple[int, bool]] = {
    layers.Dilation: (1, False),
    layers.Erosion: (-1, False),
    layers.SignedDilation: (1, True),
    layers.SignedErosion: (-1, True),
}
"""Sign of each dense layer, and whether it meets both signs of its inputs."""


@torch.no_grad()
def export_int16(network: nn.Module, levels: int = 255, sublevels: int = 1) -> IntegerNetwork:
    """The network with weights rounded to parts of grey levels, in 16-bit integers.

    Args:
        network: A Sequential, nested ones too, of Dilation, Erosion, SignedDilation, SignedErosion, MeanShift, Shift,
            Flatten, Identity and Dropout, in evaluation mode, for images in [0, 1].
        levels: Grey level of the highest value of an image; the grid has steps of 1 / (levels * sublevels).
        sublevels: Steps in a grey level; more round less, and the range of 16 bits ends earlier.

    Returns:
        A module from images to int16 logits; it is exact, and so are its certificates.

    Raises:
        NotCertifiable: A layer that does more than add and compare, or in training mode; the message names it.
        NotSupportedError: Some image might make a number that does not fit; the message names the layer.
        ConfigError: levels or sublevels that are not positive, or too many.
    """
    if min(levels, sublevels) < 1 or levels * sublevels > LARGEST:
        raise ConfigError(
            f"export_int16: levels={levels} and sublevels={sublevels} must be >= 1, their product at most {LARGEST}"
        )
    unit = levels * sublevels
    zero = torch.zeros((), dtype=torch.long, device=next((t.device for t in network.parameters()), None))
    reach: Range = (zero, zero + unit)
    parts, rounded = [], 0
    for name, layer in layers_of(network):
        try:
            part, reach = _exported(layer, unit, reach)
        except (NotCertifiable, NotSupportedError) as error:
            raise type(error)(f"export_int16: {place(name, layer)}: {error}") from error
        rounded += isinstance(part, IntegerLayer | IntegerShift)
        parts.append(part)
    return IntegerNetwork(nn.Sequential(*parts), levels, sublevels, rounded).eval()


def _exported(layer: Any, unit: int, reach: Range) -> tuple[nn.Module, Range]:
    if type(layer) in _KINDS:
        sign, signed = _KINDS[type(layer)]
        weight, reach = _product(layer.effective_weight, unit, sign, signed, reach)
        return IntegerLayer(weight, sign, signed), reach
    if type(layer) is layers.MeanShift:
        check_evaluation(layer)
        return _shift(layer.mean, unit, reach)
    if type(layer) is layers.Shift:
        return _shift(layer.offset, unit, reach)
    if type(layer) is nn.Dropout:
        check_evaluation(layer)
        return nn.Identity(), reach
    if type(layer) is nn.Flatten:
        return layer, (reach[0].min(), reach[1].max())
    if type(layer) is nn.Identity:
        return layer, reach
    raise NotCertifiable("it has no form of additions and maxima in integers")


def _shift(offset: Tensor, unit: int, reach: Range) -> tuple[nn.Module, Range]:
    whole = _rounded(offset, unit)
    reach = reach[0] - whole, reach[1] - whole
    _check_fit(whole, *reach)
    return IntegerShift(whole.to(torch.int16)), reach


def _product(weight: Tensor, unit: int, sign: int, signed: bool, reach: Range) -> tuple[Tensor, Range]:
    """Weights (inputs, out), sentinels for missing ones, and the range of outputs."""
    low, high = (end.expand(weight.shape[1] // (1 + signed)) for end in reach)
    if signed:
        low, high = torch.cat([low, -high]), torch.cat([high, -low])
    if sign < 0:
        low, high = -high, -low
    missing = weight == -math.inf
    if bool(missing.all(1).any()):
        raise NotSupportedError(f"output {int(missing.all(1).nonzero()[0])} has no weight, it is infinite")
    whole = _rounded(weight, unit)
    largest = torch.where(missing, -(1 << 40), high + whole).amax(1)
    least = torch.where(missing, -(1 << 40), low + whole).amax(1)
    if signed:  # x and -x move together, so that no image reaches that
        a, b = torch.where(missing, -(1 << 40), whole).chunk(2, 1)
        least = torch.maximum(least, (-(-(a + b) // 2)).amax(1))
    modulus = int(torch.maximum(low.abs(), high.abs()).max())
    sentinel = -LARGEST + modulus
    replaced = missing | (whole < sentinel)
    _check_fit(largest)
    if bool(replaced.any()) and not int(least.min()) > sentinel + modulus:
        raise NotSupportedError(
            f"inputs reach {modulus} and outputs {int(least.min())} steps of 1/{unit}, so that a missing or very small "
            "weight has no place within 16 bits; use fewer sublevels"
        )
    whole = torch.where(replaced, sentinel, whole)
    _check_fit(whole, least)
    outputs = (least, largest) if sign > 0 else (-largest, -least)
    return whole.t().contiguous().to(torch.int16), outputs


def _rounded(values: Tensor, unit: int) -> Tensor:
    """In units, int64; -inf becomes a number far below all others."""
    return (values.double() * unit).round().clamp(-(1 << 40), 1 << 40).long()


def _check_fit(*values: Tensor) -> None:
    most = max(int(value.abs().max()) for value in values)
    if most > LARGEST:
        raise NotSupportedError(
            f"some image may lead to {most} steps, and 16 bits hold {LARGEST}; use fewer sublevels, or smaller weights"
        )
