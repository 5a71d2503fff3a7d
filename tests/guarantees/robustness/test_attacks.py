from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import ConfigError, DataError, NotCertifiable, ShapeError
from morphlightning.guarantees.robustness import PGD, certified_radii, margin
from morphlightning.lipschitz import certify
from morphlightning.metrics import AttackGap

from .conftest import EPS, Trained


def linear(seed: int, classes: int = 4, numbers: int = 6) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(numbers, classes).double().eval()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


# ------------------------------------------------------------------------------------------ what is known exactly
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_classifier_of_two_classes_it_finds_the_worst_point(norm: str) -> None:
    network = linear(0, classes=2)
    x = torch.randn(50, 6, dtype=torch.float64)
    labels = network(x).argmax(1)
    w = network.weight[labels] - network.weight[1 - labels]
    dual = w.abs().sum(1) if norm == "linf" else w.norm(dim=1)
    clean = margin(network(x), labels)
    eps = float((clean / dual).min().detach()) * 0.99  # nobody is broken, so that nobody is left early
    found = PGD(eps, norm=norm, clip=None)(network, x, labels)
    torch.testing.assert_close(found.margins, (clean - eps * dual).detach(), rtol=1e-9, atol=1e-12)


def test_a_box_holds_the_attack_back() -> None:
    network = nn.Linear(2, 2, bias=False).eval()
    network.weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    x = torch.tensor([[0.1, 0.6]])
    found = PGD(0.3)(network, x, torch.tensor([0]))
    torch.testing.assert_close(found.examples, torch.tensor([[0.0, 0.3]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_example_is_further_than_the_radius_or_outside_of_the_box(norm: str, dtype: torch.dtype) -> None:
    network = linear(1, numbers=40).to(dtype)
    x = torch.rand(30, 40, dtype=dtype)
    for eps in (1e-4, 0.03, 0.9):
        found = PGD(eps, norm=norm, restarts=3, steps=5)(network, x, network(x).argmax(1))
        change = (found.examples.double() - x.double()).norm(math.inf if norm == "linf" else 2, dim=1)
        assert change.max() <= eps
        assert change.max() > 0.9 * eps or eps > 0.1
        assert found.examples.min() >= 0
        assert found.examples.max() <= 1


def test_margins_are_those_of_the_examples() -> None:
    network = linear(2).float()
    x = torch.rand(40, 6)
    labels = torch.randint(4, (40,))  # some are wrong from the start
    found = PGD(0.1, chunk=7, restarts=2, targets=2)(network, x, labels)
    torch.testing.assert_close(found.margins, margin(network(found.examples), labels).detach())
    clean = margin(network(x), labels)
    assert torch.equal(found.examples[clean <= 0], x[clean <= 0])
    assert found.margins.le(clean + 1e-6).all()
    assert found.accuracy == found.robust.double().mean() == (found.margins > 0).double().mean()


def test_a_tie_counts_as_broken() -> None:
    network = nn.Linear(1, 2).eval()
    network.weight.data.zero_()
    network.bias.data.zero_()
    assert PGD(0.1)(network, torch.full((1, 1), 0.5), torch.tensor([0])).accuracy == 0


# ------------------------------------------------------------------------------------------------- trained networks
def test_certified_samples_resist_every_attack(trained: Trained) -> None:
    """LIP-5: certified <= attacked, sample by sample, and the two are close."""
    network, x, labels = trained
    certified = margin(network(x), labels) > 2 * EPS * certify(network, "linf").constant
    attack = PGD(EPS, restarts=2, targets=2, steps=25)
    gap = AttackGap()
    gap.update(attack(network, x, labels), certified)
    assert 0.6 < certified.float().mean() < 0.95
    assert 0 <= gap.compute() < 0.04


def test_soft_gradients_find_more_than_the_networks_own(trained: Trained) -> None:
    network, x, labels = trained
    own, soft = (PGD(EPS, beta=beta, steps=25)(network, x, labels) for beta in (None, 40.0))
    assert soft.robust.sum() < own.robust.sum()


def test_more_starts_and_targets_never_find_less(trained: Trained) -> None:
    network, x, labels = (trained.network, trained.inputs[:200], trained.labels[:200])
    one = PGD(EPS, steps=10)(network, x, labels)
    for more in ({"restarts": 3}, {"targets": 2}, {"targets": "all"}):
        found = PGD(EPS, steps=10, **more)(network, x, labels)
        assert found.margins.le(one.margins + 1e-6).all()


def test_a_target_breaks_what_the_nearest_rival_hides() -> None:
    class Trap(nn.Module):
        """The nearest rival falls back as it is approached; the other one comes closer."""

        def forward(self, x: Tensor) -> Tensor:
            wall = 0.2 - 2 * (x[:, 0] - 0.5).abs()
            return torch.stack([torch.zeros_like(wall), wall - 0.25, 4 * (x[:, 1] - 0.5) - 0.35], 1)

    x, label = torch.full((1, 2), 0.5), torch.tensor([0])
    assert PGD(0.1, steps=20)(Trap().eval(), x, label).accuracy == 1
    assert PGD(0.1, steps=20, targets=2)(Trap().eval(), x, label).accuracy == 0


def test_candidates_are_decided_about_by_the_network_not_by_its_surrogate(trained: Trained) -> None:
    network, x, labels = trained.network, trained.inputs[:100], trained.labels[:100]

    class Grid(nn.Module):
        """The network between grey levels, without any gradient."""

        def forward(self, x: Tensor) -> Tensor:
            return (network((x * 255).short() / 255) * 255).short()

    with pytest.raises(RuntimeError, match="does not require grad"):
        PGD(EPS, steps=2)(Grid().eval(), x, labels)
    found = PGD(EPS, steps=20)(Grid().eval(), x, labels, surrogate=network)
    assert torch.equal(found.margins, margin(Grid()(found.examples), labels))
    foreign = nn.Sequential(nn.Flatten(), linear(0, 10, 64).float())
    assert found.robust.sum() < PGD(EPS, steps=20)(Grid().eval(), x, labels, surrogate=foreign).robust.sum()


# ----------------------------------------------------------------------------------------------------- no traces
def test_nothing_changes_and_everything_repeats(trained: Trained) -> None:
    network, x, labels = trained.network, trained.inputs[:60], trained.labels[:60]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    attack = PGD(EPS, steps=5, restarts=3, chunk=25)
    seen: list[tuple[int, int]] = []
    one = attack(network, x, labels, progress=lambda done, of: seen.append((done, of)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert seen == [(25, 60), (50, 60), (60, 60)]
    with torch.inference_mode():
        two = attack(network, x.clone(), labels.clone())
    with torch.no_grad():
        three = attack(network, x, labels)
    for again in (two, three):
        assert torch.equal(again.examples, one.examples)
        assert torch.equal(again.margins, one.margins)
    other = PGD(EPS, steps=5, restarts=3, chunk=25, seed=1)(network, x, labels)
    assert not torch.equal(other.examples, one.examples)


# ----------------------------------------------------------------------------------------------------- hypothesis
BLOCKS = {
    "linear": lambda n: nn.Linear(n, n),
    "relu": lambda n: nn.ReLU(),
    "signed": lambda n: layers.SignedDilation(n, n),
    "erosion": lambda n: layers.SignedErosion(n, n),
    "opening": lambda n: layers.Opening(n, 3),
    "soft": lambda n: layers.SoftSignedDilation(n, n, beta=5.0),
    "shift": lambda n: layers.MeanShift(n),
    "norm": lambda n: nn.BatchNorm1d(n),
    "missing": lambda n: layers.Dilation(n, n, mask=torch.ones(n, n).tril().bool()),
}


CASES = (
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    st.sampled_from(["lipschitz l2", "lipschitz linf", "interval linf", "exact linf"]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**20),
)


def hunt(blocks: list[str], certificate: str, dtype: torch.dtype, seed: int) -> None:
    """Attack samples of a network of these layers, each at its certified radius."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(*(BLOCKS[name](5) for name in blocks)).to(dtype).eval()
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point() and "beta" not in name:
                tensor.data.normal_()
                if "var" in name:
                    tensor.data.abs_()
        x = torch.rand(3, 5, dtype=dtype)
    method, norm = certificate.split()
    with torch.no_grad():
        labels = network(x).argmax(1)
    try:
        radii = certified_radii(network, x, labels, method, norm=norm)  # type: ignore[arg-type]
    except NotCertifiable:  # needs l2 behind what bounds linf, or has no exact margin
        return
    for row, radius in enumerate(radii.tolist()):
        if radius > 1e-6:
            eps = min(radius, 1.0) if norm == "linf" else radius
            attack = PGD(eps, norm=norm, steps=8, restarts=2, beta=10.0)  # type: ignore[arg-type]
            assert attack(network, x[row : row + 1], labels[row : row + 1]).accuracy == 1


@settings(max_examples=30, deadline=None)
@given(*CASES)
def test_no_attack_breaks_a_certificate(blocks: list[str], certificate: str, dtype: torch.dtype, seed: int) -> None:
    """LIP-5, hunted for counterexamples."""
    hunt(blocks, certificate, dtype, seed)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(*CASES)
def test_no_attack_breaks_any_of_a_thousand_certificates(
    blocks: list[str], certificate: str, dtype: torch.dtype, seed: int
) -> None:
    """LIP-5, hunted for longer."""
    hunt(blocks, certificate, dtype, seed)


def test_the_constant_of_the_margin_in_l2() -> None:
    """LIP-7: gap / (sqrt 2 |J|) never exceeds the distance to the boundary of a linear classifier, and is sharp;
    sqrt 2 gap / |J| does exceed it, and an attack inside of that radius succeeds.
    """
    excess, sharpest = 0, 0.0
    for seed in range(2000):
        network = linear(seed)
        network.bias.data.zero_()
        x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(-seed - 1))
        logits = (network.weight @ x).detach()
        label = int(logits.argmax())
        others = [k for k in range(4) if k != label]
        gaps = logits[label] - logits[others]
        exact = (gaps / (network.weight[label] - network.weight[others]).norm(dim=1)).min().item()
        bound = gaps.min().item() / (math.sqrt(2) * certify(network, "l2").constant)
        assert bound <= exact
        sharpest, excess = max(sharpest, bound / exact), excess + (2 * bound > exact)
    assert sharpest > 0.98
    assert excess > 1000
    identity = nn.Linear(2, 2, bias=False).double().eval()
    identity.weight.data.copy_(torch.eye(2))
    x, label = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    right = 1 / (math.sqrt(2) * certify(identity, "l2").constant)
    assert PGD(right * 0.999, norm="l2", clip=None)(identity, x, label).accuracy == 1
    assert PGD(right * 1.001, norm="l2", clip=None)(identity, x, label).accuracy == 0  # so nothing above is right


# ------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"eps": 0.0}, "no radius"),
        ({"eps": 0.1, "steps": 0}, "must be positive"),
        ({"eps": 0.1, "norm": "l1"}, "'linf' or 'l2'"),
        ({"eps": 0.1, "targets": -1}, "targets"),
        ({"eps": 0.1, "clip": (1.0, 0.0)}, "clip"),
        ({"eps": 8.0}, r"eps=8 is no radius in the units of the data.*8 grey levels .* eps=0.03137"),
    ],
)
def test_settings_that_cannot_work(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PGD(**given_)


def test_inputs_in_other_units_and_other_bad_calls() -> None:
    network, x, y = linear(0).float(), torch.rand(3, 6), torch.tensor([0, 1, 2])
    attack = PGD(0.1)
    with pytest.raises(DataError, match=r"outside clip=\(0.0, 1.0\).*normalization into the network"):
        attack(network, 4 * x - 1, y)
    with pytest.raises(DataError, match="divide grey levels by 255"):
        attack(network, (x * 255).to(torch.uint8), y)
    with pytest.raises(ConfigError, match="training mode"):
        attack(linear(0).train(), x, y)
    with pytest.raises(ShapeError, match="labels"):
        attack(network, x, y[:2])
    with pytest.raises(ShapeError, match="at least 2 classes"):
        attack(linear(0, classes=1).float(), x, y)
    with pytest.raises(DataError, match="no samples"):
        attack(network, x[:0], y[:0])
