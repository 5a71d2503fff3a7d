"""Winning taps and how far the others could rise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from morphlightning import layers
from morphlightning.guarantees.information import Taps, keep_winners, observe, observed
from morphlightning.layers import (
    Dilation,
    Dilation2d,
    Erosion,
    GumbelDilation,
    MorphPool2d,
    SignedDilation,
    SoftDilation,
)

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize(("kind", "sign"), [(Dilation, 1), (Erosion, -1)])
def test_dense_layers_by_brute_force(kind: type[layers.MorphLayer], sign: int) -> None:
    torch.manual_seed(0)
    layer = kind(4, 3, mask=MASK, initializer="uniform").double()
    x = torch.rand(50, 4, dtype=torch.float64)
    scores = sign * x[:, None] + layer.effective_weight
    best, winner = scores.max(-1)
    wins = torch.stack([(winner == tap).sum(0) for tap in range(4)], 1)
    found = observe(layer, x)
    assert torch.equal(found.wins, wins)
    torch.testing.assert_close(found.ceiling, (best[..., None] - sign * x[:, None]).amin(0))
    winning = found.winning
    assert not winning[~MASK].any()
    torch.testing.assert_close(found.ceiling[winning], layer.weight.detach()[winning])
    assert (found.ceiling[MASK] >= layer.weight.detach()[MASK] - 1e-12).all()


@pytest.mark.parametrize(
    "layer",
    [
        SignedDilation(4, 3, initializer="uniform"),
        Dilation2d(2, 4, 3, groups=2, padding=1, initializer="uniform"),
        layers.Erosion2d(2, 3, (2, 3), stride=2, initializer="uniform"),
        MorphPool2d(2, 2, initializer="uniform"),
        layers.Dilation1d(1, 2, 3, initializer="uniform"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_ceilings_are_the_largest_weights_that_change_nothing(layer: layers.MorphLayer) -> None:
    """Every weight at its ceiling leaves all outputs as they are; a bit above it, one output changes."""
    torch.manual_seed(0)
    layer = layer.double()
    shape = {1: (30, 4), 3: (6, 1, 8), 4: (6, 2, 6, 6)}[layer.weight.ndim if layer.weight.ndim > 2 else 1]
    x = torch.rand(shape, dtype=torch.float64)
    y, found = layer(x).detach(), observe(layer, x)
    rows = layer.wanted(y)
    assert found.wins.sum() == rows.numel()
    with torch.no_grad():
        layer.weight.copy_(found.ceiling)
        torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-12)
        for index in torch.randperm(layer.weight.numel())[:5]:
            layer.weight.view(-1)[index] += 0.01
            assert (layer(x) - y).abs().max() == pytest.approx(0.01)
            layer.weight.view(-1)[index] -= 0.01


def test_batches_join_to_the_whole() -> None:
    torch.manual_seed(0)
    layer, x = Dilation(4, 3, initializer="uniform"), torch.rand(40, 4)
    joined = Taps.none(layer)
    for part in x.split(7):
        joined = joined.joined(observe(layer, part))
    whole = observe(layer, x)
    assert torch.equal(joined.wins, whole.wins)
    assert torch.equal(joined.ceiling, whole.ceiling)


def test_what_never_met_an_input_may_be_anything() -> None:
    layer = Dilation2d(1, 1, 3, padding=1).double()
    found = observe(layer, torch.rand(2, 1, 1, 1, dtype=torch.float64))  # all taps but the centre lie outside
    assert found.wins.flatten().tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert (found.ceiling == math.inf).sum() == 8


def test_layers_with_winners_are_observed_while_a_network_runs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        Dilation(4, 5), SoftDilation(5, 5), GumbelDilation(5, 5), Erosion(5, 3), layers.Opening(3, 3)
    )
    x = torch.rand(2, 6, 4)
    with torch.no_grad(), observed(network) as found:
        network(x)
        network(x)
    assert list(found) == ["0", "3"]
    assert found["0"].wins.sum() == 2 * 12 * 5
    assert not any(child._forward_pre_hooks for child in network)


def test_masking_what_never_wins_changes_no_output() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(SignedDilation(4, 5, initializer="uniform"), Erosion(5, 3, initializer="uniform"))
    x = torch.rand(30, 4)
    with torch.no_grad(), observed(network) as found:
        before = network(x)
    winning = sum(int(taps.winning.sum()) for taps in found.values())
    assert keep_winners(network, found) == winning < 55
    assert torch.equal(network(x), before)
    assert keep_winners(network, found, 10**6) == 8  # the most frequent of each unit
    assert all(layer.mask.any(1).all() for layer in network)
