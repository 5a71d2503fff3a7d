from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import RegularizerContext
from morphlightning.layers import Dilation

CONTEXT = RegularizerContext(torch.zeros(0), torch.zeros(0), 0, 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), Dilation(4, 5), nn.Linear(5, 2))


def test_l1_sums_linear_weights_and_leaves_max_plus_weights_out() -> None:
    net = network()
    term = registry.build("regularizers", {"name": "l1", "weight": 0.5}).term(net, CONTEXT)
    assert term.item() == pytest.approx(0.5 * (net[0].weight.abs().sum() + net[2].weight.abs().sum()).item())
    term.backward()
    assert net[1].weight.grad is None
    assert net[0].bias.grad is None
    torch.testing.assert_close(net[0].weight.grad, 0.5 * net[0].weight.detach().sign())


def test_l1_pattern() -> None:
    net = network()
    term = registry.build("regularizers", {"name": "l1", "weight": 1.0, "pattern": "2.*"}).term(net, CONTEXT)
    assert term.item() == pytest.approx((net[2].weight.abs().sum() + net[2].bias.abs().sum()).item())


def test_l1_refuses_a_pattern_without_a_match_and_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no parameter matches pattern 'conv\*'; there are 0.weight, 0.bias"):
        registry.build("regularizers", {"name": "l1", "pattern": "conv*"}).bind(network())


def test_l1_bad_weight() -> None:
    with pytest.raises(ConfigError, match="weight must be >= 0"):
        registry.build("regularizers", {"name": "l1", "weight": -1.0})
