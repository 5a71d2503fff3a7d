"""Random weights as parametrizations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.information import (
    BoxPosterior,
    GaussianPosterior,
    GumbelPosterior,
    WeightPosterior,
    posteriors,
)
from morphlightning.interfaces import Constrained, Posterior
from morphlightning.layers import Dilation, GumbelDilation
from morphlightning.models.parameters import parameter_groups

KINDS = [GaussianPosterior, GumbelPosterior, BoxPosterior]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_in_training_means_in_evaluation_and_keeps_its_parameters(kind: type[WeightPosterior]) -> None:
    module = linear()
    start = module.weight.detach().clone()
    posterior = kind.of(module)
    assert posterior.location is module.parametrizations.weight.original
    torch.testing.assert_close(posterior.location.detach(), start)
    draws = torch.stack([module.weight.detach() for _ in range(4000)])
    module.eval()
    assert torch.equal(module.weight, module.weight)
    error = (draws.mean(0) - module.weight) / (draws.std(0) / math.sqrt(len(draws)))
    assert error.abs().max() < 5  # standard errors, of 12 weights
    module.weight.sum().backward()
    assert posterior.location.grad is not None


def test_known_divergences() -> None:
    """Sums over weights of what can be computed by hand."""
    module = linear()
    gaussian = GaussianPosterior.of(module, std=0.1, prior_std=0.5)
    w = gaussian.location.detach()
    by_hand = (0.5 * ((0.01 + w**2) / 0.25 - 1) + math.log(5)).sum()
    torch.testing.assert_close(gaussian.kl().detach(), by_hand)
    gumbel = GumbelPosterior.of(module, "bias", scale=0.2, prior_scale=0.2)
    d = gumbel.location.detach() / 0.2
    torch.testing.assert_close(gumbel.kl().detach(), (d - 1 + torch.exp(-d)).sum())
    box = BoxPosterior.of(nn.Linear(3, 5), radius=0.01, bound=2.0)
    assert box.kl().item() == pytest.approx(15 * math.log(200), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_learned(kind: type[WeightPosterior]) -> None:
    module = linear()
    posterior = kind.of(module)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    before = posterior.kl().item()
    for _ in range(50):
        optimizer.zero_grad()
        posterior.kl().backward()
        optimizer.step()
        if isinstance(posterior, Constrained):
            posterior.project_()
    assert posterior.kl().item() < 0.7 * before
    groups = {group.role: group for group in parameter_groups(module)}
    assert len(groups["scale"].params) == 1
    assert not groups["scale"].decay


def test_boxes_that_leave_the_prior_are_moved_back() -> None:
    module = linear()
    box = BoxPosterior.of(module, radius=0.1, bound=1.0)
    with torch.no_grad():
        box.location[0, 0] = 5.0
        box.log_radius[1, 1] = 3.0
    assert box.kl().item() == math.inf
    box.project_()
    assert math.isfinite(box.kl().item())
    assert box.location[0, 0].item() == pytest.approx(0.9)


def test_posteriors_are_listed_once_by_the_tensor_or_the_layer() -> None:
    network = nn.Sequential(GumbelDilation(3, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    GaussianPosterior.of(network[1])
    GaussianPosterior.of(network[1], "bias")
    names = [name for name, posterior in posteriors(network) if isinstance(posterior, Posterior)]
    assert names == ["0", "1.weight", "1.bias"]


def test_copies_and_checkpoints() -> None:
    module = linear()
    GaussianPosterior.of(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        module.parametrizations.weight.original.zero_()
    [(_, mine)], [(_, theirs)] = posteriors(module), posteriors(other)
    assert theirs.location is other.parametrizations.weight.original
    assert theirs.kl() > mine.kl()
    module.load_state_dict(other.state_dict())
    assert torch.equal(theirs.kl(), mine.kl())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="use GumbelDilation"):
        GaussianPosterior.of(Dilation(2, 2))
    with pytest.raises(ConfigError, match=r"has no parameter 'kernel'; it has weight, bias"):
        GaussianPosterior.of(linear(), "kernel")
    module = linear()
    GaussianPosterior.of(module)
    with pytest.raises(ConfigError, match="parametrized already"):
        GaussianPosterior.of(module)
    with pytest.raises(ConfigError, match=r"expected finite numbers > 0, got std=-1"):
        GaussianPosterior.of(linear(), std=-1.0)
    with pytest.raises(ConfigError, match="give a bound of at least"):
        BoxPosterior.of(linear(), radius=0.1, bound=0.2)
