"""Information as a term of the loss."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from morphlightning_plugins.regularizers import ActivationInformation, WeightInformation
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.information import GaussianPosterior, gaussian_rate, gumbel_rate
from morphlightning.interfaces import RegularizerContext
from morphlightning.layers import Dilation, GumbelDilation
from morphlightning.models import MorphologicalClassifier


def context(size: int, **activations: Tensor) -> RegularizerContext:
    return RegularizerContext(torch.zeros(0), torch.zeros(0), 0, size, activations)


def network() -> nn.Module:
    net = nn.Sequential(GumbelDilation(2, 3, scale=0.5), nn.Linear(3, 4))
    GaussianPosterior.of(net[1], std=0.5)
    with torch.no_grad():
        net[0].weight.fill_(0.5)
        net[1].parametrizations.weight.original.fill_(1.0)
    return net


def test_weight_information_is_summed_and_divided_once() -> None:
    """Means in place of sums, anywhere, or another division, give another number."""
    net, regularizer = network(), WeightInformation(weight=0.3)
    regularizer.bind(net)
    of_gumbel, of_gaussian = math.exp(-1.0), 0.5 * (0.25 + 1 - 1) + math.log(2)
    expected = 0.3 * (6 * of_gumbel + 12 * of_gaussian) / 1000
    assert regularizer.term(net, context(1000)).item() == pytest.approx(expected, rel=1e-6)


def test_weight_information_refuses_what_it_cannot_divide_by_and_networks_without_random_weights() -> None:
    with pytest.raises(ConfigError, match="the number of training samples is not known"):
        WeightInformation().term(network(), context(0))
    with pytest.raises(ConfigError, match="no weight of the network is random"):
        WeightInformation().bind(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weight must be finite"):
        WeightInformation(weight=-1.0)


def test_inf_1_free_energy_is_minus_log_evidence_at_the_exact_posterior() -> None:
    """INF-1: Bayesian linear regression with one weight; m (loss + term) = -log p(y), and more at any other law."""
    torch.manual_seed(0)
    count, noise, prior = 40, 0.3, 1.0
    x = torch.randn(count, 1, dtype=torch.float64)
    y = 0.7 * x[:, 0] + noise * torch.randn(count, dtype=torch.float64)
    precision = (x**2).sum() / noise**2 + 1 / prior**2
    mean, std = (x[:, 0] @ y) / noise**2 / precision, precision**-0.5
    covariance = prior**2 * x @ x.T + noise**2 * torch.eye(count, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(count, dtype=torch.float64), covariance).log_prob(y)

    def free_energy(m: Tensor, s: Tensor) -> float:
        layer = nn.Linear(1, 1, bias=False).double()
        posterior = GaussianPosterior.of(layer, prior_std=prior)
        with torch.no_grad():
            posterior.location.fill_(m)
            posterior.log_std.fill_(s.log())
        expected_square = (y - m * x[:, 0]).square() + s**2 * x[:, 0].square()
        likelihood = (expected_square / (2 * noise**2) + math.log(noise * math.sqrt(2 * math.pi))).mean()
        return count * (likelihood + WeightInformation().term(layer, context(count))).item()

    assert free_energy(mean, std) == pytest.approx(-evidence.item(), rel=1e-9)
    for m, s in ((mean + 0.02, std), (mean, 1.3 * std), (mean, 0.8 * std)):
        assert free_energy(m, s) > -evidence.item() + 1e-4


def test_inf_2_the_gaussian_rate_is_the_information_of_a_gaussian_channel() -> None:
    """INF-2: h ~ N(0, 1) gives log(1 + 1/s^2) / 2, by quadrature points in place of draws."""
    h = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    for std in (0.3, 1.0, 2.0):
        assert gaussian_rate(h, std).item() == pytest.approx(0.5 * math.log(1 + std**-2), abs=2e-4)


@pytest.mark.parametrize(("height", "expected"), [(1.0, 0.4338), (3.0, 2.3093)])
def test_the_gumbel_rate_bounds_the_information_of_a_binary_unit(height: float, expected: float) -> None:
    """The information by quadrature, for h in {0, height} with equal probabilities and B = 0.5."""
    h = torch.tensor([[0.0], [height]], dtype=torch.float64)
    rate = gumbel_rate(h, 0.5).item()
    closed = height / 2 / 0.5 + math.log((1 + math.exp(-height / 0.5)) / 2)
    assert rate == pytest.approx(closed, rel=1e-12)
    assert rate == pytest.approx(expected, abs=1e-4)
    z = torch.linspace(-1.5, 12, 200_001, dtype=torch.float64)
    densities = torch.stack([2 * torch.exp(-(z - a) / 0.5 - torch.exp(-(z - a) / 0.5)) for a in h[:, 0]])
    mixture = densities.mean(0)
    information = torch.special.xlogy(densities, densities / mixture).mean(0).sum() * (z[1] - z[0])
    assert 0 < information.item() <= rate


@pytest.mark.parametrize("rate", [gumbel_rate, gaussian_rate])
def test_rates_have_the_value_and_the_gradient_of_their_closed_forms(rate: object) -> None:
    torch.manual_seed(0)
    h = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    closed = {
        gumbel_rate: lambda h: h.mean(0) / 0.4 + (-h / 0.4).exp().mean(0).log(),
        gaussian_rate: lambda h: 0.5 * (1 + h.var(0, correction=0) / 0.16).log(),
    }[rate]
    value = rate(h, 0.4)
    torch.testing.assert_close(value, closed(h))
    (gradient,) = torch.autograd.grad(value.sum(), h)
    torch.testing.assert_close(gradient, torch.autograd.grad(closed(h).sum(), h)[0])


def test_rates_do_not_overflow() -> None:
    h = torch.tensor([[-500.0], [0.0], [500.0]], requires_grad=True)
    for rate in (gumbel_rate, gaussian_rate):
        value = rate(h, 0.1)
        assert value.isfinite().all()
    assert gumbel_rate(h, 1.0).item() == pytest.approx(500 - math.log(3), rel=1e-6)


def test_activation_information_sums_over_units_and_layers() -> None:
    net = nn.Sequential(Dilation(2, 3), nn.Softplus(), nn.Linear(3, 2))
    torch.manual_seed(0)
    first, second = torch.rand(5, 3) + 1, torch.rand(5, 2, 4)
    seen = context(10, **{"0": first, "1": second})
    found = ActivationInformation(weight=0.5, kind="gaussian", noise=0.2, layers=("0", "1")).term(net, seen)
    both = torch.cat([first, second.flatten(1)], 1)
    assert found.item() == pytest.approx(0.25 * (1 + both.var(0, correction=0) / 0.04).log().sum().item(), rel=1e-5)
    found = ActivationInformation(weight=0.5, kind="lognormal", noise=0.2, layers=("0",)).term(net, seen)
    logs = first.log().var(0, correction=0)
    assert found.item() == pytest.approx(0.25 * (1 + logs / 0.04).log().sum().item(), rel=1e-5)


def test_activation_information_refusals() -> None:
    net = nn.Sequential(GumbelDilation(2, 3), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match=r"layer '0' \(GumbelDilation\) draws noise itself"):
        ActivationInformation().bind(net)
    with pytest.raises(ConfigError, match=r"no layer matches 'conv\*'; there are 0, 1"):
        ActivationInformation(layers=("conv*",)).bind(net)
    with pytest.raises(ConfigError, match="has no max-plus layers"):
        ActivationInformation().bind(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="was not called"):
        ActivationInformation(layers=("1",)).term(net, context(5))
    with pytest.raises(DataError, match="gives values <= 0"):
        ActivationInformation(kind="lognormal", layers=("1",)).term(net, context(5, **{"1": torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match="kind must be one of"):
        ActivationInformation(kind="uniform")
    with pytest.raises(ValueError, match="sequence of patterns"):
        ActivationInformation(layers="0")


class Known(nn.Linear):
    """Weights with a divergence that does not draw numbers."""

    def kl(self) -> Tensor:
        return self.weight.square().sum()


def fitted(folder: Path, batch: int, accumulate: int, regularizer: object) -> MorphologicalClassifier:
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 1, 4, dtype=torch.float64), torch.arange(12) % 3
    backbone = nn.Sequential(nn.Flatten(), Dilation(4, 5), Known(5, 5))
    model = MorphologicalClassifier((1, 1, 4), 3, backbone=backbone, optimizer="sgd", regularizers=[regularizer])
    trainer = L.Trainer(
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accelerator="cpu",
        limit_val_batches=0,
    )
    data = DataLoader(TensorDataset(x, y), batch_size=batch)
    trainer.fit(model, data, data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("regularizer")}
    assert logged
    assert all(value > 0 for value in logged.values())
    return model


def test_layers_are_watched_during_steps_alone(tmp_path: Path) -> None:
    model = fitted(tmp_path, 12, 1, ActivationInformation(weight=0.1))
    assert not any(child._forward_hooks for child in model.modules())
    assert not model._watched.activations


def test_accumulated_gradients_hold_the_information_of_weights_once(tmp_path: Path) -> None:
    whole, parts = (fitted(tmp_path, 12 // n, n, WeightInformation(weight=2.0)) for n in (1, 3))
    for name, value in whole.named_parameters():
        torch.testing.assert_close(parts.get_parameter(name), value, rtol=1e-12, atol=1e-12)
