"""Signed layers: log-sum-exp, maxima, the distance that they contain, 16-bit integers, boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peak
import torch
from cases import Candidate, Case, Setting
from dense import LINEAR, TINY, linear, name_of
from torch import Tensor, nn

from morphlightning.guarantees.robustness import box_around, export_int16, propagate
from morphlightning.layers import MorphLayer, SignedDilation, SoftSignedDilation

BETA = 30.0
SHAPES = ((512, 512, 784), (512, 2048, 784))
"""Samples, outputs, inputs; a pair is an input with one of its signs and a weight."""


def signed(setting: Setting) -> Iterator[Case]:
    """Training and distances, then what certificates need."""
    for shape in setting.shapes(SHAPES, TINY):
        yield training_case(setting, *shape)
        yield certificate_case(setting, *shape)


def training_case(setting: Setting, *shape: int) -> Case:
    """Layers of one weight [-c | c], whose maximum is the distance in the sup norm from c."""
    x, centres = operands(setting, *shape)
    hard, full, half = layers(centres)
    candidates = [
        of_layer("SoftSignedDilation", full, x),
        of_layer("SoftSignedDilation, bfloat16", half, x),
        of_layer("SignedDilation", hard, x),
        linear(x, centres),
        Candidate("torch.cdist, p = inf", lambda: torch.cdist(x, centres, p=torch.inf), (x, centres), "other"),
        Candidate("torch.cdist, p = 8", lambda: torch.cdist(x, centres, p=8), (x, centres), "other"),
    ]
    work = 2 * x.numel() * len(centres)
    return Case(f"{name_of(*shape)}, beta = {BETA:g}", LINEAR, candidates, work, limits=peak.pairs(setting))


def certificate_case(setting: Setting, *shape: int) -> Case:
    """A box through one layer, and the layer in 16-bit integers."""
    x, centres = operands(setting, *shape)
    images = (255 * (x.detach() + 0.5)).round() / 255
    hard, *_ = layers(centres)
    network = nn.Sequential(hard).eval()
    box, exported = box_around(images, 0.1), export_int16(network)
    levels = exported.grey_levels(images)
    product: Any = exported.parts[0]
    candidates = [
        Candidate("SignedDilation, float32", lambda: hard(images), (), "ours"),
        Candidate("16-bit integers", lambda: product(levels), (), "other"),
        Candidate("box, float32", lambda: propagate(network, box).lower, (), "other"),
        Candidate("nn.Linear", lambda: nn.functional.linear(images, centres), (), "other"),
    ]
    work = 2 * images.numel() * len(centres)
    name = f"{name_of(*shape)}, certificates"
    return Case(name, LINEAR, candidates, work, limits=peak.pairs(setting), modes=("forward",))


def operands(setting: Setting, *shape: int) -> tuple[Tensor, Tensor]:
    """Inputs in [-0.5, 0.5], and centres."""
    batch, outputs, inputs = shape
    x = (torch.rand(batch, inputs) - 0.5).to(setting.device).requires_grad_()
    return x, setting.normal(outputs, inputs, scale=0.2)


def layers(centres: Tensor) -> list[MorphLayer]:
    """The hard layer, and the soft one in both precisions."""
    outputs, inputs = centres.shape
    made = [
        SignedDilation(inputs, outputs),
        SoftSignedDilation(inputs, outputs, beta=BETA),
        SoftSignedDilation(inputs, outputs, beta=BETA, precision="bfloat16"),
    ]
    for layer in made:
        layer.to(centres.device).weight.data.copy_(torch.cat([-centres, centres], 1).detach())
    return made


def of_layer(name: str, layer: MorphLayer, x: Tensor) -> Candidate:
    return Candidate(name, lambda: layer(x), (x, layer.weight), "ours")
