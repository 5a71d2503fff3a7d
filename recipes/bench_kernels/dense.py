"""Dense operators: dilation and erosion, winners and gaps, ties, log-sum-exp; the reference is a linear layer."""

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

from morphlightning.functional import dilation, erosion, soft_dilation
from morphlightning.layers import Dilation

LINEAR = "nn.Linear"
TINY = (8, 16, 64)
SHAPES = (
    (1, 64, 784),
    (8, 64, 784),
    (32, 64, 784),
    (256, 10, 784),
    (256, 64, 784),
    (256, 256, 784),
    (256, 1024, 784),
    (1024, 64, 784),
    (1024, 256, 784),
    (1024, 1024, 784),
    (1024, 1024, 1024),
    (256, 256, 4096),
    (256, 256, 64),
    (512, 128, 128),
)
"""Samples, outputs, inputs."""
SURVEYED = (256, 256, 784)
"""The shape at which every peer runs; elsewhere the slow ones would only repeat themselves."""
LEVELS = 2
"""Steps between whole numbers on the grid of quantised data: about 47 % of the maxima of 784 candidates tie there."""
BETA = 10 / 3
"""Inverse temperature of the soft operators."""
CACHED = 2**18
"""Scores that a chunk of the broadcast may hold, so that it stays in the cache."""


def name_of(*shape: int) -> str:
    batch, outputs, inputs = shape
    return f"{batch} x {inputs} -> {outputs}"


def operands(setting: Setting, *shape: int) -> tuple[Tensor, Tensor]:
    """Inputs, and weights of half their spread."""
    batch, outputs, inputs = shape
    return setting.normal(batch, inputs), setting.normal(outputs, inputs, scale=0.5)


def linear(x: Tensor, w: Tensor) -> Candidate:
    """What the layer computes, without a bias."""
    return Candidate(LINEAR, lambda: F.linear(x, w), (x, w), "other")


def layer_of(x: Tensor, w: Tensor) -> Dilation:
    """The layer with these weights, as it is trained."""
    made = Dilation(w.shape[1], w.shape[0]).to(x.device)
    made.weight.data.copy_(w.detach())
    return made


# ---------------------------------------------------------------------------------------------------- dense
def dense(setting: Setting) -> Iterator[Case]:
    """Every shape against a linear layer and tropical-gemm, then one shape against everything.

    The broadcast forms come last, since their temporaries disturb the memory allocator for all that take turns with
    them.
    """
    yield from (dense_case(setting, *shape) for shape in setting.shapes(SHAPES, TINY))
    yield survey_case(setting, *setting.shapes([SURVEYED], TINY)[0])


def dense_case(setting: Setting, *shape: int) -> Case:
    x, w = operands(setting, *shape)
    return against_linear(setting, name_of(*shape), x, w, [])


def survey_case(setting: Setting, *shape: int) -> Case:
    """With the erosion, and with what one writes without a package."""
    x, w = operands(setting, *shape)
    more = [
        *ours(setting, "-erosion(-x)", lambda: -erosion(-x, w), x, w),
        Candidate("broadcast .max", lambda: broadcast_max(x, w), (x, w)),
        Candidate("broadcast .amax", lambda: broadcast_amax(x, w), (x, w)),
        Candidate("broadcast in chunks", lambda: chunked(x, w), (x, w)),
        *compiled(setting, "broadcast .max", broadcast_max, x, w),
        *compiled(setting, "broadcast .amax", broadcast_amax, x, w),
    ]
    return against_linear(setting, f"{name_of(*shape)}, all peers", x, w, more)


def against_linear(setting: Setting, name: str, x: Tensor, w: Tensor, more: list[Candidate]) -> Case:
    layer = layer_of(x, w)
    candidates = [
        *ours(setting, "dilation", lambda: dilation(x, w), x, w, every_backend=True),
        *ours(setting, "layer Dilation", lambda: layer(x), x, layer.weight),
        linear(x, w),
        *peers.offered("tropical-gemm", lambda package: tropical(package, setting, x, w)),
        *more,
    ]
    return Case(name, LINEAR, candidates, x.numel() * w.shape[0], limits=peak.pairs(setting))


def tropical(package: Any, setting: Setting, x: Tensor, w: Tensor) -> list[Candidate]:
    """tropical-gemm: with winners under autograd, and values alone."""
    on_cuda = setting.device == "cuda"
    if on_cuda and not package.GPU_AVAILABLE:
        return []
    wt = setting.fresh(w.t().contiguous())
    multiply = package.tropical_maxplus_matmul_gpu if on_cuda else package.tropical_maxplus_matmul
    found = [Candidate("tropical-gemm, with winners", lambda: multiply(x, wt), (x, wt))]
    if not on_cuda:
        values, left, right = (package.tropical_gemm.maxplus_matmul_2d, x.detach().numpy(), wt.detach().numpy())
        found.append(Candidate("tropical-gemm, values", lambda: np.asarray(values(left, right))))
    return found


def broadcast_max(x: Tensor, w: Tensor) -> Tensor:
    return (x[:, None] + w).max(-1).values


def broadcast_amax(x: Tensor, w: Tensor) -> Tensor:
    return (x[:, None] + w).amax(-1)


def chunked(x: Tensor, w: Tensor) -> Tensor:
    """The broadcast, a few outputs at a time."""
    return torch.cat([broadcast_max(x, part) for part in w.split(max(1, CACHED // x.numel()))], 1)


# --------------------------------------------------------------------------------------------- argmax, ties
def argmax(setting: Setting) -> Iterator[Case]:
    """What winners, and gaps to the runner-up, cost the forward pass."""
    shapes = setting.shapes(((256, 64, 784), (256, 256, 784), (1024, 1024, 784)), TINY)
    return (argmax_case(setting, *shape) for shape in shapes)


def argmax_case(setting: Setting, *shape: int) -> Case:
    x, w = operands(setting, *shape)
    candidates = [
        *ours(setting, "values", lambda: dilation(x, w), every_backend=True),
        *ours(setting, "with winners: 'first'", recorded(x, w, "first"), every_backend=True),
        *ours(setting, "with winners and gaps: 'uniform'", recorded(x, w, "uniform"), every_backend=True),
        linear(x, w),
    ]
    name, work = name_of(*shape), x.numel() * w.shape[0]
    return Case(name, LINEAR, candidates, work, limits=peak.pairs(setting), modes=("forward",))


def recorded(x: Tensor, w: Tensor, derivative: str) -> Callable[[], Tensor]:
    """A forward pass that keeps what this rule needs for the backward pass."""

    def run() -> Tensor:
        with torch.enable_grad():
            return dilation(x, w, derivative=derivative)

    return run


def ties(setting: Setting) -> Iterator[Case]:
    """A training step of the rule that shares messages among tied candidates, on data with and without ties."""
    shapes = setting.shapes(((256, 256, 784), (1024, 1024, 784)), TINY)
    return (ties_case(setting, quantised, *shape) for shape in shapes for quantised in (False, True))


def ties_case(setting: Setting, quantised: bool, *shape: int) -> Case:
    x, w = operands(setting, *shape)
    if quantised:
        x, w = (setting.fresh((t * LEVELS).round() / LEVELS) for t in (x, w))
    candidates = [*under_rule(setting, "first", x, w), *under_rule(setting, "uniform", x, w), linear(x, w)]
    name = f"{name_of(*shape)}, {tied(x, w):.0%} tied"
    return Case(name, LINEAR, candidates, x.numel() * w.shape[0], modes=("step",))


def under_rule(setting: Setting, rule: str, x: Tensor, w: Tensor) -> list[Candidate]:
    """A dilation under a derivative rule."""
    return ours(setting, f"dilation, {rule!r}", lambda: dilation(x, w, derivative=rule), x, w, every_backend=True)


@torch.no_grad()
def tied(x: Tensor, w: Tensor) -> float:
    """The share of outputs whose maximum is reached more than once."""
    count = sum(int((row + w).topk(2).values.diff()[:, 0].eq(0).sum()) for row in x)
    return count / (x.shape[0] * w.shape[0])


# ----------------------------------------------------------------------------------------------------- soft
def soft(setting: Setting) -> Iterator[Case]:
    """Log-sum-exp in place of the maximum."""
    return (soft_case(setting, *shape) for shape in setting.shapes(((256, 64, 784), (256, 256, 784)), TINY))


def soft_case(setting: Setting, *shape: int) -> Case:
    x, w = operands(setting, *shape)
    candidates = [
        Candidate("soft_dilation", lambda: soft_dilation(x, w, BETA), (x, w), "ours"),
        linear(x, w),
        Candidate("broadcast logsumexp", lambda: broadcast_logsumexp(x, w), (x, w)),
        *compiled(setting, "broadcast logsumexp", broadcast_logsumexp, x, w),
    ]
    name = f"{name_of(*shape)}, beta = {BETA:.2f}"
    return Case(name, LINEAR, candidates, x.numel() * w.shape[0])


def broadcast_logsumexp(x: Tensor, w: Tensor) -> Tensor:
    return torch.logsumexp(BETA * (x[:, None] + w), -1) / BETA
