r"""How far a forward pass may be off by rounding, anywhere in a ball, for networks with a Lipschitz constant.

A layer of constant L whose outputs come from n rounded operations each is off by at most

.. math:: e = n\,\epsilon\,(2 L\,|h| + |f(h)| + m)

with twice the unit roundoff :math:`\epsilon` of the dtype, inputs h, and m the largest sum of weights that is added to
inputs on the way; errors of the layers before it arrive L times as large. n is the number of terms of its sums, plus 8
for single operations and elementary functions. What branches add on the way, ``Sum`` and ``Residual`` count in turn.
Derived here. Nothing is claimed for products in TF32, convolutions by transforms, or layers of others that add up more
terms than a row of their weights has, or whose numbers on the way are larger than their inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from morphlightning.guarantees.robustness.boxes import largest
from morphlightning.guarantees.robustness.morphological_intervals import SOFT_ERROR, added_channels
from morphlightning.layers.base import MorphLayer
from morphlightning.lipschitz import Residual, Sum, certify
from morphlightning.lipschitz.spec import Certificate, Measured, layers_of

FEW = 8
_AVERAGING = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.LayerNorm, nn.GroupNorm, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax, nn.RMSNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.Upsample,
)  # fmt: skip


@torch.no_grad()
def forward_error(
    network: nn.Module, certificate: Certificate, x: Tensor, eps: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of a network, and how far they may be off, for samples and for all inputs within eps of one.

    Args:
        network: What was certified.
        certificate: Its layers and their constants.
        x: Samples (batch, ...).
        eps: Radius, in the norm of the certificate, or one for each sample.

    Returns:
        Outputs for x, and the largest error of an output, in float64 (batch,).
    """
    norm: Measured = "l2" if certificate.spec.norm_in == "l2" else "linf"
    reach = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))
    y, error, _ = _forward(network, certificate, x, norm, reach, torch.zeros_like(reach))
    return y, error


def _forward(
    network: nn.Module, certificate: Certificate, x: Tensor, norm: Measured, reach: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs for x, their error, and how far they reach, of inputs with an error that reach so far in a norm."""
    for (_, layer), (_, spec) in zip(layers_of(network), certificate.layers, strict=True):
        before, inside = x, _inside(layer, x, norm, reach)
        x = layer(x)
        scale = 2 * spec.constant * (_size(before, norm) + reach)
        norm = norm if spec.norm_out == "any" else spec.norm_out
        reach = spec.constant * reach
        own = _operations(layer, before) * torch.finfo(x.dtype).eps * (scale + _size(x, norm) + reach + _scale(layer))
        own = own + _of_rounded_factors(layer)
        error = spec.constant * error + own * (math.sqrt(x[0].numel()) if norm == "l2" else 1) + inside
    return x, error, reach


def _inside(layer: nn.Module, x: Tensor, norm: Measured, reach: Tensor) -> Tensor:
    """What the branches of a layer add: numbers in them may be larger than inputs and outputs, and cancel."""
    total = torch.zeros_like(reach)
    for factor, branch in _branches(layer):
        y, error, far = _forward(branch, certify(branch, norm), x, norm, reach, torch.zeros_like(reach))
        total = total + factor * (error + FEW * torch.finfo(y.dtype).eps * (_size(y, norm) + far))
    return total


def _branches(layer: nn.Module) -> list[tuple[float, nn.Module]]:
    """Branches and what they are multiplied by."""
    if isinstance(layer, Residual):
        return [(1 - layer.keep, layer.branch)]
    return [(1.0, branch) for branch in layer.branches] if isinstance(layer, Sum) else []


def _size(x: Tensor, norm: str) -> Tensor:
    """The norm of each sample, of its finite numbers."""
    finite = torch.where(x.isfinite(), x.double(), 0).flatten(1)
    size: Tensor = torch.linalg.vector_norm(finite, 2 if norm == "l2" else math.inf, 1)
    return size


def _operations(layer: nn.Module, x: Tensor) -> int:
    """Rounded operations behind an output; soft operators state their error as so many of the last place."""
    if isinstance(layer, _AVERAGING):
        return FEW + x[0].numel()
    parts = list(_morphological(layer))
    own = {id(p) for part in parts for p in part.parameters()}
    matrices = [p for p in layer.parameters() if p.ndim > 1 and id(p) not in own]
    # transposed convolutions add up columns; of a layer made of several all errors arrive
    rows = [max(p[0].numel(), p[:, 0].numel()) for p in matrices]
    soft = [SOFT_ERROR for part in parts if hasattr(part, "beta")]
    single = sum(not list(child.children()) for child in layer.modules())
    return FEW * added_channels(layer) ** 2 * single + sum(rows + soft)


def _scale(layer: nn.Module) -> float:
    """The largest sum of weights of morphological parts, and what errors of soft ones are at least relative to."""
    parts = list(_morphological(layer))
    soft = sum(1 + 1 / float(part.get_buffer("beta")) for part in parts if hasattr(part, "beta"))
    return float(sum(largest(part.effective_weight).double() for part in parts)) + soft


def _of_rounded_factors(layer: nn.Module) -> float:
    """What products of factors in bfloat16 add."""
    rounded = [part for part in _morphological(layer) if getattr(part, "precision", "full") == "bfloat16"]
    return sum(3 / (255 * float(part.get_buffer("beta"))) for part in rounded)


def _morphological(layer: nn.Module) -> Iterator[MorphLayer]:
    return (part for part in layer.modules() if isinstance(part, MorphLayer))
