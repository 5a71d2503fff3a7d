"""Operators on images: structuring functions against convolutions, flat boxes against max-pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import peak
import peers
import torch
import torch.nn.functional as F
from cases import Candidate, Case, Setting, compiled, ours
from torch import Tensor

from morphlightning.functional import dilation2d, erosion2d
from morphlightning.layers import Dilation2d

CONVOLUTION = "nn.Conv2d"
POOLING = "F.max_pool2d"


def layer_of(x: Tensor, w: Tensor, outputs: int | None) -> Dilation2d:
    """The layer with these weights, as it is trained."""
    made = Dilation2d(x.shape[1], outputs, w.shape[-1]).to(x.device)
    made.weight.data.copy_(w.detach().view_as(made.weight))
    return made


def patches(x: Tensor, size: int) -> Tensor:
    """(batch, channels, size * size, pixels): every window, the outside at -inf."""
    columns = F.unfold(F.pad(x, (size // 2,) * 4, value=-torch.inf), size)
    return columns.view(x.shape[0], x.shape[1], size * size, -1)


def unfolded(setting: Setting, operator: Callable[..., Tensor], x: Tensor, b: Tensor) -> list[Candidate]:
    """What one writes without a package: windows unfolded, then a maximum."""

    def by_max(x: Tensor, b: Tensor) -> Tensor:
        return operator(x, b, lambda scores: scores.max(2).values)

    def by_amax(x: Tensor, b: Tensor) -> Tensor:
        return operator(x, b, lambda scores: scores.amax(2))

    return [
        Candidate("unfold .max", lambda: by_max(x, b), (x, b)),
        Candidate("unfold .amax", lambda: by_amax(x, b), (x, b)),
        *compiled(setting, "unfold .max", by_max, x, b),
        *compiled(setting, "unfold .amax", by_amax, x, b),
    ]


def kornia(package: Any, x: Tensor, kernel: Tensor, b: Tensor | None = None) -> list[Candidate]:
    """By the engine that kornia chooses itself, and by windows unfolded."""

    def by(engine: str) -> Candidate:
        def run() -> Any:
            return package.dilation(x, kernel, structuring_element=b, engine=engine)

        return Candidate(f"kornia, engine {engine!r}", run, (x,) if b is None else (x, b))

    return [by("auto"), by("unfold")]


def on_images(x: Tensor, distribution: str, name: str, operator: Callable[[Any, Any], Any]) -> list[Candidate]:
    """A package that knows no batches, no gradients and no devices: ``operator(package, image)`` on every channel."""
    if x.device.type != "cpu":
        return []
    images = x.detach().numpy().reshape(-1, *x.shape[2:])

    def make(package: Any) -> list[Candidate]:
        return [Candidate(name, lambda: np.stack([operator(package, image) for image in images]))]

    return peers.offered(distribution, make)


# ------------------------------------------------------------------------------------------------ depthwise
def depthwise(setting: Setting) -> Iterator[Case]:
    """One structuring function a channel, the same for all, since kornia and scipy take one only."""
    shapes = ((64, 1, 28, 5), (16, 8, 64, 3), (16, 8, 64, 5), (16, 8, 64, 11), (4, 3, 256, 7))
    return (depthwise_case(setting, *shape) for shape in setting.shapes(shapes, (2, 2, 16, 3)))


def depthwise_case(setting: Setting, batch: int, channels: int, side: int, size: int) -> Case:
    x = setting.normal(batch, channels, side, side)
    shared = setting.normal(size, size, scale=0.5)
    b = setting.fresh(shared.expand(channels, size, size).contiguous())
    kernel, layer = setting.fresh(b[:, None]), layer_of(x, b, None)
    structured = {"structure": shared.detach().cpu().numpy(), "mode": "constant", "cval": -np.inf}
    candidates = [
        *ours(setting, "dilation2d", lambda: dilation2d(x, b), x, b, every_backend=True),
        *ours(setting, "layer Dilation2d", lambda: layer(x), x, layer.weight),
        *ours(setting, "-erosion2d(-x, reflected)", lambda: -erosion2d(-x, b.flip(1, 2)), x, b),
        Candidate(CONVOLUTION, lambda: F.conv2d(x, kernel, padding=size // 2, groups=channels), (x, kernel), "other"),
        *peers.offered("kornia", lambda package: kornia(package, x, torch.ones_like(shared), shared)),
        *unfolded(setting, depthwise_unfolded, x, b),
        *on_images(x, "scipy", "scipy grey_dilation", lambda scipy, f: scipy.grey_dilation(f, **structured)),
    ]
    name, work = f"{batch} x {channels} x {side}², K = {size}", x.numel() * size * size
    return Case(name, CONVOLUTION, candidates, work, limits=peak.pairs(setting))


def depthwise_unfolded(x: Tensor, b: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    return reduce(patches(x, b.shape[-1]) + b.flip(1, 2).flatten(1)[:, :, None]).view(x.shape)


# ----------------------------------------------------------------------------------------------------- full
def full(setting: Setting) -> Iterator[Case]:
    """Every output channel sees every input channel."""
    shapes = ((64, 1, 16, 28, 5), (16, 8, 16, 28, 5), (8, 16, 32, 64, 3), (16, 16, 16, 32, 7))
    return (full_case(setting, *shape) for shape in setting.shapes(shapes, (2, 2, 3, 12, 3)))


def full_case(setting: Setting, batch: int, inputs: int, outputs: int, side: int, size: int) -> Case:
    x, w = (setting.normal(batch, inputs, side, side), setting.normal(outputs, inputs, size, size, scale=0.5))
    layer = layer_of(x, w, outputs)
    candidates = [
        *ours(setting, "dilation2d", lambda: dilation2d(x, w), x, w, every_backend=True),
        *ours(setting, "layer Dilation2d", lambda: layer(x), x, layer.weight),
        Candidate(CONVOLUTION, lambda: F.conv2d(x, w, padding=size // 2), (x, w), "other"),
        *unfolded(setting, full_unfolded, x, w),
    ]
    name, work = (f"{batch} x {inputs} -> {outputs} x {side}², K = {size}", x.numel() * outputs * size * size)
    return Case(name, CONVOLUTION, candidates, work, limits=peak.pairs(setting))


def full_unfolded(x: Tensor, w: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    scores = patches(x, w.shape[-1]).flatten(1, 2)[:, None] + w.flip(2, 3).flatten(1)[:, :, None]
    return reduce(scores).view(x.shape[0], w.shape[0], *x.shape[2:])


# ----------------------------------------------------------------------------------------------------- flat
def flat(setting: Setting) -> Iterator[Case]:
    """A box of zeros: the maximum of a neighbourhood."""
    shapes = ((16, 8, 64, 3), (16, 8, 64, 7), (16, 8, 64, 11), (4, 3, 256, 7))
    return (flat_case(setting, *shape) for shape in setting.shapes(shapes, (2, 2, 16, 3)))


def flat_case(setting: Setting, batch: int, channels: int, side: int, size: int) -> Case:
    x, box = (setting.normal(batch, channels, side, side), torch.ones(size, size, device=setting.device))
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    flat_box = np.ones((size, size), np.uint8)
    candidates = [
        *ours(setting, "dilation2d", lambda: dilation2d(x, size), x, every_backend=True),
        Candidate(POOLING, lambda: F.max_pool2d(x, size, 1, size // 2), (x,)),
        Candidate(f"{POOLING}, channels last", lambda: F.max_pool2d(last, size, 1, size // 2), (last,)),
        Candidate("unfold .amax", lambda: patches(x, size).amax(2).view(x.shape), (x,)),
        *peers.offered("kornia", lambda package: kornia(package, x, box)),
        *on_images(x, "opencv-python-headless", "OpenCV dilate", lambda cv2, f: cv2.dilate(f, flat_box)),
        *on_images(x, "scipy", "scipy grey_dilation", lambda scipy, f: scipy.grey_dilation(f, (size, size))),
        *on_images(x, "scikit-image", "scikit-image dilation", lambda skimage, f: skimage.dilation(f, flat_box)),
    ]
    name = f"{batch} x {channels} x {side}², K = {size}"
    return Case(name, POOLING, candidates, x.numel(), "pixel", peak.copies(x))
