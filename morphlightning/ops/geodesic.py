"""Reconstruction by dilation with provenance: each output is one seed or mask value, and remembers which.

The backward pass is then a single scatter, whatever the number of iterations (docs/conventions.md, "Reconstruction").
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from morphlightning.ops import eager
from morphlightning.ops.geometry import Window
from morphlightning.ops.vmap import vmap_by_loop


@torch.library.custom_op("morphlightning::reconstruct", mutates_args=())
def _reconstruct(seed: Tensor, mask: Tensor, footprint: Tensor, reflect: bool) -> tuple[Tensor, Tensor]:
    """Iterate min(dilation, mask) until nothing changes; images (samples, 1, *space), footprint (*window).

    Provenance counts the seed's pixels first, then the mask's. A pixel keeps its source until its value grows.
    """
    window = _window(footprint, reflect)
    if reflect:
        footprint = footprint.flip(tuple(range(footprint.ndim)))
    w = torch.zeros(1, 1, *footprint.shape, dtype=seed.dtype, device=seed.device)
    w = w.masked_fill_(~footprint, -math.inf)
    pixels = math.prod(seed.shape[1:])
    unit = torch.arange(pixels, device=seed.device)
    limit, y = mask.flatten(1), torch.minimum(seed, mask).flatten(1)
    source = torch.where(seed.flatten(1) <= limit, unit, pixels + unit)
    while True:
        grown, tap, _ = eager.indices(y.view_as(seed), w, window, gap=False)
        cell = window.cell(unit, tap.flatten(1).clamp_min(0), seed.shape, w.shape).clamp_min(0)
        grown = grown.flatten(1)
        reached = torch.minimum(grown, limit)
        changed = reached > y
        if not changed.any():
            return y.view_as(seed).clone(), source.view_as(seed).clone()
        source = torch.where(changed, torch.where(grown <= limit, source.gather(1, cell), pixels + unit), source)
        y = torch.where(changed, reached, y)


def _window(footprint: Tensor, reflect: bool) -> Window:
    ones = (1,) * footprint.ndim
    before, after = tuple(k // 2 for k in footprint.shape), tuple(k - 1 - k // 2 for k in footprint.shape)
    return Window(ones, ones, after, before) if reflect else Window(ones, ones, before, after)


@_reconstruct.register_fake
def _(seed: Tensor, mask: Tensor, footprint: Tensor, reflect: bool) -> tuple[Tensor, Tensor]:
    return seed.new_empty(seed.shape), seed.new_empty(seed.shape, dtype=torch.int64)


_reconstruct.register_vmap(vmap_by_loop(_reconstruct))


class _Reconstruct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(seed: Tensor, mask: Tensor, footprint: Tensor, reflect: bool) -> Any:
        return _reconstruct(seed, mask, footprint, reflect)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None]:
        (source,) = ctx.saved_tensors
        pixels = math.prod(gy.shape[1:])
        both = gy.new_zeros(gy.shape[0], 2 * pixels).scatter_add(1, source.flatten(1), gy.flatten(1))
        return both[:, :pixels].view_as(gy), both[:, pixels:].view_as(gy), None, None


def reconstruct(seed: Tensor, mask: Tensor, footprint: Tensor, reflect: bool) -> Tensor:
    """Reconstruction by dilation of images (samples, 1, *space) with a boolean footprint.

    ``reflect`` says whether the footprint is reflected, as a dilation does, or not, as the dual of an erosion.
    """
    if has_torch_function((seed, mask)):
        return handle_torch_function(reconstruct, (seed, mask), seed, mask, footprint, reflect)
    return cast(Tensor, _Reconstruct.apply(seed, mask, footprint, reflect)[0])  # type: ignore[no-untyped-call]
