"""Checks of activations: pointwise modules of any shape."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor, nn

from morphlightning.testing._subject import Subject, is_documented, is_saved_by_name, require_equal

_CHANNELS = 3
_SHAPES = ((4, 3), (2, 3, 5), (2, 3, 4, 5), (1, 3, 2, 2, 2), (0, 3))


def keeps_the_shape(subject: Subject) -> None:
    """Any shape comes back, shared over channels or not, whatever axis holds them and however memory is laid out."""
    for channels in (None, _CHANNELS):
        module = subject.build(channels=channels, channel_dim=1)
        for shape in _SHAPES:
            assert module(torch.randn(shape)).shape == shape, f"channels={channels}, input {shape}"
        images = torch.randn(2, 3, 4, 5)
        transposed = images.contiguous(memory_format=torch.channels_last)
        require_equal(module(transposed), module(images), f"channels={channels}, channels_last", 1e-6)
    last = subject.build(channels=_CHANNELS, channel_dim=-1)
    assert last(torch.randn(2, 5, 3)).shape == (2, 5, 3), "channel_dim=-1, input (2, 5, 3)"


def keeps_the_dtype(subject: Subject) -> None:
    """Output dtype is input dtype, for float32, float64 and bfloat16, with the module in float32."""
    module = subject.build(channels=_CHANNELS, channel_dim=1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        seen = module(torch.randn(2, 3).to(dtype)).dtype
        assert seen == dtype, f"{seen} for an input in {dtype}"


def acts_elementwise(subject: Subject) -> None:
    """An output depends on its own input alone: changing one input changes at most that output."""
    module = subject.build(channels=_CHANNELS, channel_dim=1).eval()
    x = torch.randn(4, 3, 5)
    y = module(x)
    changed = x.clone()
    changed[2, 1, 3] += 1.5
    moved = module(changed) != y
    moved[2, 1, 3] = False
    assert not moved.any(), f"{int(moved.sum())} other outputs moved"


def channels_start_alike(subject: Subject) -> None:
    """A new module with channels computes what a new shared one computes."""
    x = torch.randn(5, 3)
    shared, split = subject.build(channels=None), subject.build(channels=_CHANNELS, channel_dim=1)
    require_equal(split(x), shared(x), "channels=3 against channels=None", 1e-6)


def has_the_right_gradient(subject: Subject) -> None:
    """Gradients for input and parameters pass gradcheck in float64, away from kinks."""
    module = subject.build(channels=_CHANNELS, channel_dim=1).double()
    x = _smooth_points(module)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    values = [dict(module.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        replaced = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, replaced, (x,))  # type: ignore[no-any-return]

    torch.autograd.gradcheck(call, (x.requires_grad_(), *values), eps=1e-7, atol=1e-5)


def passes_nan_on(subject: Subject) -> None:
    """NaN in, NaN out, at that place alone and without an exception; finite extremes stay free of NaN."""
    module = subject.build(channels=_CHANNELS, channel_dim=1)
    x = torch.randn(2, 3)
    x[1, 2] = math.nan
    seen = module(x).isnan()
    assert torch.equal(seen, x.isnan()), f"NaN at {seen.nonzero().tolist()}, expected at [[1, 2]]"
    extremes = torch.tensor([[0.0, 1e4, -1e4]])
    assert module(extremes).isfinite().all(), "not finite at 0, 1e4, -1e4"


def state_comes_back(subject: Subject) -> None:
    """A state_dict saved and loaded (weights_only=True) into a new module gives the same bits."""
    module = subject.build(channels=_CHANNELS, channel_dim=1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    again = subject.build(channels=_CHANNELS, channel_dim=1)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(4, 3)
    require_equal(again(x), module(x), "after loading")


CHECKS = (
    is_documented,
    is_saved_by_name,
    keeps_the_shape,
    keeps_the_dtype,
    acts_elementwise,
    channels_start_alike,
    has_the_right_gradient,
    passes_nan_on,
    state_comes_back,
)


def _smooth_points(module: nn.Module) -> Tensor:
    """Points where the module's slope is the same a little to the left and to the right."""
    candidates = torch.randn(64, 3, dtype=torch.float64)
    step = 1e-4
    with torch.no_grad():
        left, here, right = (module(candidates + shift) for shift in (-step, 0.0, step))
    bend = ((right - here) - (here - left)).abs().amax(1) / step
    order = bend.argsort()[:8]
    assert bend[order].max() < 1e-2, "the kit found no place without a kink"
    return candidates[order]
