"""Information in random weights, and winning taps, as metrics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.information import GaussianPosterior, observe
from morphlightning.layers import Dilation, Erosion, GumbelDilation, MeanShift, SignedDilation
from morphlightning.metrics import InformationInWeights, WinningTaps


def random_network() -> nn.Module:
    network = nn.Sequential(GumbelDilation(2, 3, scale=0.5), nn.Linear(3, 4))
    GaussianPosterior.of(network[1], std=0.5)
    with torch.no_grad():
        network[0].weight.fill_(0.5)
        network[1].parametrizations.weight.original.fill_(1.0)
    return network


@pytest.mark.parametrize(("unit", "factor"), [("nats", 1.0), ("bits", 1 / math.log(2))])
def test_information_is_summed_over_weights(unit: str, factor: float) -> None:
    metric = InformationInWeights(unit)
    metric.update(random_network())
    found = metric.compute()
    assert found["0"].item() == pytest.approx(factor * 6 * math.exp(-1), rel=1e-6)
    assert found["1.weight"].item() == pytest.approx(factor * 12 * (0.125 + math.log(2)), rel=1e-6)
    assert found["total"] == found["0"] + found["1.weight"]
    with pytest.raises(ConfigError, match="no random weights"):
        metric.update(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="unit must be"):
        InformationInWeights("bytes")


def test_winning_taps_over_batches_equal_those_of_all_data() -> None:
    torch.manual_seed(0)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 0] = False
    network = nn.Sequential(
        SignedDilation(4, 5, initializer="uniform"), MeanShift(5), Erosion(5, 3, mask=mask, initializer="uniform")
    ).eval()
    x = torch.rand(40, 4)
    metric = WinningTaps(network)
    for part in x.split(11):
        metric.update(part)
    found = metric.compute()
    first = observe(network[0], x)
    with torch.no_grad():
        second = observe(network[2], network[:2](x))
    for name, taps, count in (("0", first, 40), ("2", second, 14)):
        assert torch.equal(metric.taps(name).wins, taps.wins)
        assert torch.equal(metric.taps(name).ceiling, taps.ceiling)
        assert found[name] == taps.winning.sum()
        assert found[f"{name}/share"].item() == pytest.approx(found[name].item() / count)
    assert found["all"] == found["0"] + found["2"]
    assert found["all/share"].item() == pytest.approx(found["all"].item() / 54)
    slack = metric.slack("2")
    assert (slack[second.winning] < 1e-6).all()
    assert slack[0, 0] == math.inf
    assert not list(metric.children())


def test_processes_add_wins_and_keep_the_least_ceiling() -> None:
    torch.manual_seed(0)
    layer = Dilation(4, 3, initializer="uniform")
    x = torch.rand(40, 4)
    whole, parts = WinningTaps(layer), [WinningTaps(layer) for _ in range(2)]
    whole.update(x)
    for metric, part in zip(parts, x.split(20), strict=True):
        metric.update(part)
    for name in ("wins_0", "ceiling_0"):
        gathered = torch.stack([getattr(metric, name) for metric in parts])
        assert torch.equal(whole._reductions[name](gathered), getattr(whole, name))


def test_copies_look_at_copies_and_reset_forgets() -> None:
    torch.manual_seed(0)
    holder = nn.Module()
    holder.network = Dilation(4, 3, initializer="uniform")
    holder.metric = WinningTaps(holder.network)
    other = copy.deepcopy(holder)
    assert other.metric._network[0] is other.network
    holder.metric.update(torch.rand(5, 4))
    assert holder.metric.compute()[""] > 0
    holder.metric.reset()
    assert not holder.metric.taps("").winning.any()
    with pytest.raises(ConfigError, match="no layers of single maxima"):
        WinningTaps(nn.Linear(2, 2))
