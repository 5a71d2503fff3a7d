from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import RegularizerContext
from morphlightning.layers import Dilation
from morphlightning.splines import LinearSpline, NonuniformSpline
from morphlightning.splines.tv2 import prox_tv2

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


def spline_network() -> nn.Module:
    torch.manual_seed(0)
    first, second = LinearSpline(4, knots=11), NonuniformSpline(knots=7, init="absolute")
    nn.init.normal_(first.values)
    return nn.Sequential(nn.Linear(3, 4), first, nn.Linear(4, 2), second)


def test_tv2_sums_over_splines_by_the_first_pattern_that_matches() -> None:
    net = spline_network()
    first, second = net[1].tv2().sum().item(), net[3].tv2().sum().item()
    for weight, expected in (
        (0.5, 0.5 * (first + second)),
        ({"1": 2.0}, 2 * first),
        ({"3": 1, "*": 3}, 3 * first + second),
    ):
        regularizer = registry.build("regularizers", {"name": "tv2", "weight": weight})
        regularizer.bind(net)
        assert regularizer.term(net, CONTEXT).item() == pytest.approx(expected, rel=1e-5)
    regularizer.term(net, CONTEXT).backward()
    assert net[1].values.grad.abs().sum() > 0
    assert net[0].weight.grad is None


def test_tv2_takes_proximal_steps_of_weight_times_learning_rate() -> None:
    net = spline_network()
    before = net[1].values.detach().clone()
    regularizer = registry.build("regularizers", {"name": "tv2", "weight": {"1": 0.5, "3": 4.0}, "mode": "prox"})
    assert regularizer.term(net, CONTEXT) == 0
    regularizer.prox_(net, {net[1].values: 0.2, net[0].weight: 1.0})
    torch.testing.assert_close(net[1].values.detach(), prox_tv2(before, (-3.0, 3.0), 0.1))
    assert torch.equal(net[3].values, spline_network()[3].values)  # no step of the optimizer, none of this


def test_tv2_proximal_step_starts_from_what_is_applied() -> None:
    net = nn.Sequential(LinearSpline(4, knots=11, constraint="lipschitz"))
    nn.init.normal_(net[0].values, std=3.0)
    applied = net[0].table().values.detach()
    registry.build("regularizers", {"name": "tv2", "weight": 1.0, "mode": "prox"}).prox_(net, {net[0].values: 0.1})
    torch.testing.assert_close(net[0].values.detach(), prox_tv2(applied, (-3.0, 3.0), 0.1))


def test_tv2_refuses_what_it_cannot_find() -> None:
    with pytest.raises(ConfigError, match="no learnable splines"):
        registry.build("regularizers", "tv2").bind(network())
    with pytest.raises(ConfigError, match=r"no spline matches pattern 'features\*'; there are 1, 3"):
        registry.build("regularizers", {"name": "tv2", "weight": {"features*": 1.0}}).bind(spline_network())
    with pytest.raises(ConfigError, match="weight must be finite"):
        registry.build("regularizers", {"name": "tv2", "weight": {"*": -1.0}})
    with pytest.raises(ConfigError, match="mode must be subgradient or prox"):
        registry.build("regularizers", {"name": "tv2", "mode": "huber"})


def test_l1_bad_weight() -> None:
    with pytest.raises(ConfigError, match="weight must be >= 0"):
        registry.build("regularizers", {"name": "l1", "weight": -1.0})
