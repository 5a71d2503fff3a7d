"""Bounds that exchange margins for bits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError, NotCertifiable
from morphlightning.guarantees.information import (
    Evidence,
    PACBayes,
    TapChain,
    TapPrior,
    binary_kl,
    evidence,
    kl_inverse,
    pac_bayes_kl,
)
from morphlightning.layers import (
    Dilation,
    DilationErosion2d,
    Erosion,
    MeanShift,
    MorphPool2d,
    Shift,
    SignedDilation,
    SoftDilation,
    SupOfErosions,
)
from morphlightning.layers.composites import DilationErosionPerceptron2d
from morphlightning.models import CertifiedClassifier


# ------------------------------------------------------------------------------------------------- the inequality
@pytest.mark.parametrize("q", [0.0, 0.03, 0.4, 0.9])
@pytest.mark.parametrize("nats", [1e-6, 0.01, 0.5])
def test_inverse_of_the_divergence_of_coins(q: float, nats: float) -> None:
    p = kl_inverse(q, nats)
    assert binary_kl(q, p) >= nats * (1 - 1e-6)  # rounded up
    expected = optimize.brentq(lambda p: binary_kl(q, p) - nats, q + 1e-15, 1 - 1e-15)
    assert p == pytest.approx(expected, abs=1e-9)


def test_inverse_at_its_ends() -> None:
    assert kl_inverse(1.0, 0.3) == 1
    assert kl_inverse(0.2, math.inf) == 1
    assert kl_inverse(0.2, 0.0) == pytest.approx(0.2, abs=1e-7)
    assert kl_inverse(0.0, 0.1) == pytest.approx(1 - math.exp(-0.1))
    with pytest.raises(ConfigError, match="expected q in"):
        kl_inverse(1.2, 0.1)
    with pytest.raises(ConfigError, match="samples >= 1 and delta"):
        pac_bayes_kl(0.1, 3.0, 0)


@pytest.mark.parametrize("m", [*range(1, 9), 100, 1000])
def test_the_constant_of_the_inequality(m: int) -> None:
    """E exp(m kl(mean || p)) of m coins is sum_k C(m, k) (k/m)^k (1 - k/m)^(m - k), whatever p; at most 2 sqrt(m)."""
    k = torch.arange(m + 1, dtype=torch.float64).numpy()
    logs = special.gammaln(m + 1) - special.gammaln(k + 1) - special.gammaln(m - k + 1)
    logs += special.xlogy(k, k / m) + special.xlogy(m - k, 1 - k / m)
    assert special.logsumexp(logs) <= math.log(2 * math.sqrt(m)) + 1e-12


# ---------------------------------------------------------------------------------------------------------- priors
@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0.3, 3), st.floats(0.05, 1), st.booleans())
def test_priors_cost_and_draw_what_they_hold(
    start: float, width: float, bound: float, density: float, open_: bool
) -> None:
    prior = TapPrior(bound, density)
    low = torch.full((4000,), -math.inf if open_ else start, dtype=torch.float64)
    high = torch.full_like(low, start + width)
    share = max(0.0, min(bound, start + width) - max(-bound, -bound if open_ else start)) / (2 * bound)
    mass = density * share + (1 - density) * open_
    cost = prior.nats(low, high)
    assert cost[0].item() == pytest.approx(-math.log(mass) if mass > 0 else math.inf)
    if mass > 0:
        drawn = prior.draw(low, high, torch.Generator().manual_seed(0))
        assert ((drawn >= low) & (drawn <= high) & ((drawn.abs() <= bound) | (drawn == -math.inf))).all()
        missing = (1 - density) * open_ / mass
        assert (drawn == -math.inf).double().mean().item() == pytest.approx(missing, abs=5 * 0.5 / math.sqrt(4000))


def test_a_missing_weight_alone_costs_minus_log_of_its_share() -> None:
    nowhere = torch.tensor([-math.inf], dtype=torch.float64)
    assert TapPrior(1.0, 0.25).nats(nowhere, nowhere).item() == pytest.approx(-math.log(0.75))
    assert TapPrior(1.0, 1.0).nats(nowhere, nowhere).item() == math.inf
    assert TapPrior(1.0, 0.25).draw(nowhere, nowhere).item() == -math.inf
    with pytest.raises(ConfigError, match="density in"):
        TapPrior(1.0, 0.0)


# ---------------------------------------------------------------------------------------------------------- chains
def windowed() -> nn.Sequential:
    torch.manual_seed(0)
    start = {"name": "uniform", "low": -0.3, "high": 0.3}
    network = nn.Sequential(
        DilationErosion2d(1, 3, 3, padding=1, initializer=start),
        MorphPool2d(6, 2, initializer=start),
        nn.MaxPool2d(2),
        nn.Flatten(),
        MeanShift(6),
        nn.ReLU(),
        SignedDilation(6, 4, initializer=start),
        MeanShift(4),
        Shift(0.25),
        Dilation(4, 3, initializer=start),
    )
    network[4].mean.uniform_(-0.3, 0.3)
    network[7].mean.uniform_(-0.3, 0.3)
    return network.eval()


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_mean_shifts_become_weights_of_either_neighbour(network: nn.Sequential, data: tuple[Tensor, Tensor]) -> None:
    expected = copy.deepcopy(network).double()(data[0].double())
    torch.testing.assert_close(TapChain(network)(data[0]), expected, rtol=0, atol=1e-12)
    behind = nn.Sequential(nn.Flatten(), MeanShift(6), *network[1:]).eval()
    behind[1].mean.uniform_(-1, 1)
    expected = copy.deepcopy(behind).double()(data[0].double())
    torch.testing.assert_close(TapChain(behind)(data[0]), expected, rtol=0, atol=1e-12)
    for kind in (Dilation, Erosion):
        between = nn.Sequential(nn.Flatten(), nn.ReLU(), MeanShift(6), kind(6, 3, initializer="uniform")).eval()
        between[2].mean.uniform_(-1, 1)
        expected = copy.deepcopy(between).double()(data[0].double())
        torch.testing.assert_close(TapChain(between)(data[0]), expected, rtol=0, atol=1e-12)


def test_the_network_itself_is_left_alone(network: nn.Sequential) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TapChain(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("build", ["signed", "windowed"])
def test_inf_6_logits_move_by_no_more_than_weights(build: str, network: nn.Sequential) -> None:
    """INF-6: the weight-Lipschitz lemma, hunted by random moves and by all weights moving to one side."""
    if build == "windowed":
        network = windowed()[:4].append(nn.Flatten()).extend(list(windowed()[6:]))
    torch.manual_seed(0)
    chain = TapChain(network)
    x = torch.rand(20, 1, 4, 4) if build == "windowed" else torch.rand(20, 1, 2, 3)
    before, largest = chain(x), 0.0
    for trial in range(60):
        other = copy.deepcopy(chain)
        moved = 0.0
        for stage in other.stages:
            size = float(torch.rand(())) ** 3
            for layer in stage.layers.values():
                move = 2 * torch.rand_like(layer.weight) - 1 if trial % 3 else torch.ones_like(layer.weight)
                move = move if trial % 2 else -move
                layer.weight += size * move
            moved += size
        largest = max(largest, float((other(x) - before).abs().max()) / moved)
    assert 0.5 < largest <= 1 + 1e-9


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([nn.Flatten(), nn.Linear(6, 3)], r"'1' \(Linear\).*no maxima or minima"),
        ([nn.Conv2d(1, 1, 1), nn.Flatten(), Dilation(6, 3)], r"'0' \(Conv2d\)"),
        ([nn.BatchNorm2d(1, affine=False), nn.Flatten(), Dilation(6, 3)], r"'0' \(BatchNorm2d\).*buffers"),
        ([nn.Flatten(), Dilation(6, 3), Unknown()], r"'2' \(Unknown\).*stands behind weights.*nothing is known"),
        ([nn.Flatten(), nn.Sequential(Dilation(6, 3), nn.Hardswish())], r"'1.1' \(Hardswish\).*constant is 1.5"),
        ([nn.Flatten(), SoftDilation(6, 3)], r"'1' \(SoftDilation\)"),
        ([nn.Flatten(), SupOfErosions(6, 3, 2)], r"'1' \(SupOfErosions\)"),
        ([DilationErosionPerceptron2d(1, 2, 2)], r"'0' \(DilationErosionPerceptron2d\)"),
        ([DilationErosion2d(2, 2, 2, merge="sum")], r"'0' \(DilationErosion2d\).*adds channels up"),
        ([nn.Flatten(), Dilation(6, 6), nn.ReLU(), MeanShift(6)], r"'3' \(MeanShift\).*neither neighbour"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value[-1]).__name__,
)
def test_layers_for_which_the_lemma_was_not_derived_are_named(layers: list[nn.Module], name: str) -> None:
    with pytest.raises(NotCertifiable, match=name):
        TapChain(nn.Sequential(*layers))


def test_shared_layers_hooks_and_networks_without_weights_are_refused() -> None:
    shared = Dilation(6, 6)
    with pytest.raises(NotCertifiable, match="comes twice"):
        TapChain(nn.Sequential(nn.Flatten(), shared, shared))
    hooked = nn.Sequential(nn.Flatten(), Dilation(6, 3))
    hooked[1].register_forward_hook(lambda *_: None)
    with pytest.raises(NotCertifiable, match="forward hooks"):
        TapChain(hooked)
    with pytest.raises(NotCertifiable, match="no layer of maxima"):
        TapChain(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_the_hardened_certified_classifier_is_a_chain() -> None:
    model = CertifiedClassifier((1, 2, 3), 3, hidden=(5, 4))
    chain = TapChain(model.hardened())
    assert len(chain.stages) == 3
    x = torch.rand(7, 1, 2, 3)
    torch.testing.assert_close(chain(x).float(), model.hardened()(x), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- bounds
@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.4])
def test_inf_6_draws_keep_what_the_gibbs_bound_takes_for_granted(
    gamma: float, network: nn.Sequential, data: tuple[Tensor, Tensor]
) -> None:
    """INF-6: draws move training logits by at most gamma / 2, and err on no more than the share of small margins."""
    chain = TapChain(network)
    seen = evidence(chain, [data], (gamma,))
    bound = PACBayes().at(chain, seen, "gibbs", 0)
    before, generator = chain(data[0]), torch.Generator().manual_seed(0)
    moved = errors = 0.0
    for _ in range(30):
        logits = bound.draw(chain, generator)(data[0].double())
        moved = max(moved, float((logits - before).abs().max()))
        errors = max(errors, float((logits.argmax(1) != data[1]).double().mean()))
    assert 0.1 * gamma < moved <= gamma / 2 + 1e-9
    assert errors <= bound.empirical
    assert bound.value == pac_bayes_kl(bound.empirical, bound.nats, 200)


def test_inf_6_draws_of_the_deterministic_bound_move_any_logits_little(
    network: nn.Sequential, data: tuple[Tensor, Tensor]
) -> None:
    """INF-6: by at most gamma / 4, on samples that were not there, too; missing weights stay missing."""
    network[3].mask[0, :3] = False
    chain = TapChain(network)
    bound = PACBayes().at(chain, evidence(chain, [data], (0.1,)), "deterministic", 0)
    fresh, generator = torch.rand(500, 1, 2, 3) * 3 - 1, torch.Generator().manual_seed(0)
    for _ in range(20):
        other = bound.draw(chain, generator)
        assert torch.equal(other[2].mask, network[3].mask)  # the shift before it is gone
        assert (other(fresh.double()) - chain(fresh)).abs().max() <= 0.025 + 1e-9


def test_the_divergence_is_what_boxes_and_ceilings_cost(network: nn.Sequential, data: tuple[Tensor, Tensor]) -> None:
    """By hand, with one prior: every winner costs log(R / (density rho)), everything else at most -log(1 - density)."""
    chain = TapChain(network)
    gamma, bound, density = 0.1, 4.0, 0.25
    seen = evidence(chain, [data], (gamma,))
    found = PACBayes(bounds=(bound,), densities=(density,)).at(chain, seen, "gibbs", 0)
    winners = [sum(int(seen.taps[name].winning.sum()) for name in stage.layers) for stage in chain.stages]
    expected = 0.0
    for stage, count in zip(chain.stages, winners, strict=True):
        rho = gamma / 2 * count / sum(winners)
        (name,) = stage.layers
        taps = seen.taps[name]
        ceiling = taps.ceiling[~taps.winning] + rho
        others = 1 - density + density * (ceiling.clamp(-bound, bound) + bound) / (2 * bound)
        expected += count * math.log(bound / (density * rho)) - float(others.log().sum())
    assert found.nats == pytest.approx(expected, rel=1e-9)
    assert found.bits == pytest.approx(expected / math.log(2))
    dear = PACBayes(bounds=(bound,) * 3, densities=(density,) * 2, alternatives=5).at(chain, seen, "gibbs", 0)
    assert dear.nats == pytest.approx(expected + 3 * math.log(6) + math.log(5), rel=1e-9)  # three stages


def test_the_deterministic_bound_pays_for_all_taps_and_for_the_choice_of_the_margin(
    network: nn.Sequential, data: tuple[Tensor, Tensor]
) -> None:
    chain, gammas = TapChain(network), (0.05, 0.1, 0.2)
    seen = evidence(chain, [data], gammas)
    found = PACBayes(bounds=(4.0,), densities=(1.0,)).at(chain, seen, "deterministic", 1)
    counts = [sum(layer.weight.numel() for layer in stage.layers.values()) for stage in chain.stages]
    expected = sum(count * math.log(4.0 / (0.1 / 4 * count / sum(counts))) for count in counts) + math.log(3)
    assert found.nats == pytest.approx(expected, rel=1e-9)
    best = PACBayes().bound(chain, seen, "deterministic")
    assert best.value <= min(PACBayes().at(chain, seen, "deterministic", k).value for k in range(3))
    assert PACBayes().bound(chain, seen).value <= best.value


def test_evidence_counts_margins_and_does_not_depend_on_batches(
    network: nn.Sequential, data: tuple[Tensor, Tensor]
) -> None:
    chain = TapChain(network)
    whole = evidence(chain, [data], (0.05, 0.1))
    parts = evidence(chain, list(zip(data[0].split(30), data[1].split(30), strict=True)), (0.05, 0.1))
    assert torch.equal(parts.failures, whole.failures)
    assert (parts.samples, parts.errors) == (whole.samples, whole.errors) == (200, whole.errors)
    for name, taps in whole.taps.items():
        assert torch.equal(parts.taps[name].wins, taps.wins)
        assert torch.equal(parts.taps[name].ceiling, taps.ceiling)
    logits = chain(data[0])
    wrong = (logits.argmax(1) != data[1]).sum()
    assert whole.errors == wrong
    assert (whole.failures >= wrong).all()


def test_the_bound_holds_for_fresh_samples(network: nn.Sequential) -> None:
    """Above the error of fresh samples, and not vacuous with 20,000 samples of a problem that the network solves."""
    torch.manual_seed(0)
    x = torch.rand(40_000, 1, 2, 3)
    y = network(x).argmax(1)
    y = torch.where(torch.rand(len(y)) < 0.05, (y + 1) % 3, y)
    chain = TapChain(network)
    seen = evidence(chain, [(x[:20_000], y[:20_000])])
    generator = torch.Generator().manual_seed(0)
    for kind in ("gibbs", "deterministic"):
        bound = PACBayes().bound(chain, seen, kind)
        drawn = bound.draw(chain, generator) if kind == "gibbs" else chain
        error = float((drawn(x[20_000:].double()).argmax(1) != y[20_000:]).double().mean())
        assert error < bound.value < 0.25


def test_refusals(network: nn.Sequential, data: tuple[Tensor, Tensor]) -> None:
    chain = TapChain(network)
    with pytest.raises(DataError, match="needs training samples"):
        evidence(chain, [])
    with pytest.raises(ConfigError, match="must be positive and rise"):
        evidence(chain, [data], (0.2, 0.1))
    with pytest.raises(ConfigError, match="kind must be"):
        PACBayes().at(chain, evidence(chain, [data]), "mean", 0)
    with pytest.raises(ConfigError, match="alternatives >= 1"):
        PACBayes(alternatives=0)
    assert isinstance(evidence(chain, [data]), Evidence)
