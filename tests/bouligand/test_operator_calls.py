"""What is recorded of one forward pass."""

from __future__ import annotations

import torch
from torch import nn

from morphlightning import layers
from morphlightning.bouligand import operator_calls
from morphlightning.ops.eager import value
from morphlightning.ops.geometry import Dense, Window


def test_calls_in_order_with_names_and_geometry():
    net = nn.Sequential(layers.Dilation2d(1, 2), nn.BatchNorm2d(2), nn.Flatten(), layers.Opening(32, 3))
    x = torch.randn(5, 1, 4, 4)
    calls = operator_calls(net, x)
    assert [call.name for call in calls] == ["0", "3", "3"]
    assert [type(call.where) for call in calls] == [Window, Dense, Dense]
    assert [call.where.dual for call in calls] == [False, True, False]
    assert torch.equal(calls[0].x, x)
    assert torch.equal(calls[1].w, net[3].weight)
    assert torch.equal(value(*calls[1][1:]), calls[2].x)  # what the first stage gives is what the second is given
    assert calls[2].w.shape == (32, 3)


def test_nothing_of_the_module_changes():
    net = nn.Sequential(nn.BatchNorm1d(6), layers.Dilation(6, 4, heuristic="count_normalized"), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, random = torch.randn(5, 6), torch.get_rng_state()
    operator_calls(net, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net[1].site.tally.grad is None


def test_compiled_modules_are_seen_through():
    net = torch.compile(nn.Sequential(nn.ReLU(), layers.Dilation(6, 4)), backend="eager")
    assert [call.name for call in operator_calls(net, torch.randn(5, 6))] == ["_orig_mod.1"]


def test_what_is_recorded_is_a_copy():
    layer = layers.Dilation(6, 4)
    x = torch.randn(5, 6)
    (call,) = operator_calls(layer, x)
    kept = call.w.clone()
    with torch.no_grad():
        layer.weight.add_(1)
    assert call.name == ""
    assert torch.equal(call.w, kept)
    assert not call.w.requires_grad
