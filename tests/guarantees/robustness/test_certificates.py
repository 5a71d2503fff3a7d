"""No certificate can be broken: hunts for counterexamples, and the algebra between methods."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import ConfigError, DataError, NotCertifiable, ShapeError
from morphlightning.guarantees.robustness import certified_margins, certified_radii
from morphlightning.guarantees.robustness.rounding import forward_error
from morphlightning.lipschitz import LipschitzNetwork, Residual, Sum, certify

HIDDEN = {
    "signed": lambda n, m: nn.Sequential(layers.SignedDilation(n, m), layers.MeanShift(m)),
    "signed erosion": lambda n, m: layers.SignedErosion(n, m),
    "dilation": lambda n, m: layers.Dilation(n, m),
    "soft": lambda n, m: layers.SoftSignedDilation(n, m, beta=10.0),
    "linear": lambda n, m: nn.Sequential(nn.Linear(n, m), nn.ReLU()),
}
LAST = {
    "signed erosion": lambda n, m: layers.SignedErosion(n, m),
    "signed dilation": lambda n, m: layers.SignedDilation(n, m),
    "dilation": lambda n, m: layers.Dilation(n, m),
    "erosion": lambda n, m: layers.Erosion(n, m),
    "linear": lambda n, m: nn.Linear(n, m),
}


def build(
    kinds: list[str], last: str, generator: torch.Generator, missing: float = 0.1
) -> tuple[nn.Sequential, Tensor]:
    """A random classifier of three classes, and inputs for it."""
    sizes = torch.randint(2, 7, (len(kinds) + 1,), generator=generator).tolist()
    parts = [HIDDEN[kind](n, m) for kind, n, m in zip(kinds, sizes, sizes[1:], strict=False)]
    network = nn.Sequential(nn.Flatten(), *parts, LAST[last](sizes[-1], 3))
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, layers.MorphLayer):
                part.mask.copy_(torch.rand(part.mask.shape, generator=generator) >= missing)
                part.mask[:, 0] = True
            if isinstance(part, layers.MeanShift):
                part.mean.copy_(torch.rand(part.mean.shape, generator=generator))
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval(), torch.rand(8, 1, sizes[0], generator=generator)


def margins(network: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    logits = network(z).double()
    rest = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return logits.gather(1, labels[:, None])[:, 0] - rest


def worst_found(network: nn.Module, x: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """The least margin by corners, random points and coordinate descent."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    best, at = margins(network, x, labels), x.clone()

    def attempt(z: Tensor) -> None:
        nonlocal best, at
        found = margins(network, z, labels)
        at = torch.where((found < best).view(-1, 1, 1), z, at)
        best = torch.minimum(found, best)

    for _ in range(30):
        share = torch.rand(x.shape, generator=generator)
        attempt(torch.where(share < 0.5, low, high))
        attempt(torch.lerp(low, high, share))
    for _, j in itertools.product(range(3), range(x.shape[-1])):
        for end in (low, high, (low + high) / 2):
            z = at.clone()
            z[..., j] = end[..., j]
            attempt(z)
    return best


@torch.no_grad()
def hunt(method: str, seed: int, kinds: list[str], last: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    network, x = build(kinds, last, generator)
    labels = network(x).argmax(1)
    if method == "exact" and last == "linear":
        with pytest.raises(NotCertifiable, match=r"Linear.*interval"):
            certified_margins(network, x, labels, eps, "exact")
        return
    found = certified_margins(network, x, labels, eps, method)  # type: ignore[arg-type]
    assert not found.isnan().any()
    assert (worst_found(network, x, labels, eps, generator) >= found).all()


NETWORKS = {
    "seed": st.integers(0, 2**31),
    "kinds": st.lists(st.sampled_from(sorted(HIDDEN)), max_size=3),
    "last": st.sampled_from(sorted(LAST)),
    "eps": st.sampled_from([0.01, 0.1, 0.3]),
}


@pytest.mark.parametrize("method", ["lipschitz", "interval", "exact"])
@settings(max_examples=25, deadline=None)
@given(**NETWORKS)
def test_no_search_goes_below_a_certified_margin(
    method: str, seed: int, kinds: list[str], last: str, eps: float
) -> None:
    hunt(method, seed, kinds, last, eps)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lipschitz", "interval", "exact"])
@settings(max_examples=400, deadline=None)
@given(**NETWORKS)
def test_no_long_search_does(method: str, seed: int, kinds: list[str], last: str, eps: float) -> None:
    hunt(method, seed, kinds, last, eps)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), depth=st.integers(0, 3), dilation=st.booleans(), eps=st.floats(1e-3, 1))
def test_intervals_are_no_weaker_than_constants_and_exact_margins_no_weaker_than_intervals(
    seed: int, depth: int, dilation: bool, eps: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    network, x = build(["signed"] * depth, "signed dilation" if dilation else "signed erosion", generator, 0.0)
    labels = torch.randint(3, (8,), generator=generator)
    lipschitz, interval, exact = (
        certified_margins(network, x, labels, eps, method) for method in ("lipschitz", "interval", "exact")
    )
    slack = 2e-5  # what the three take off for rounding
    assert (interval >= lipschitz - slack).all()
    assert (exact >= interval - slack).all()


def test_a_distance_neuron_attains_its_lipschitz_radius() -> None:
    """Of two sup-norm distances the radius is half their difference, and a step towards the other centre flips."""
    centres = torch.tensor([[0.2, 0.5], [0.8, 0.5]])
    layer = layers.SignedErosion(2, 2)  # minus the distances
    with torch.no_grad():
        layer.weight.copy_(torch.cat([centres, -centres], 1))
    x, labels = torch.tensor([[0.3, 0.5]]), torch.tensor([0])
    torch.testing.assert_close(layer(x), -torch.tensor([[0.1, 0.5]]))
    radius = certified_radii(layer, x, labels)
    assert float(radius) == pytest.approx(0.2, abs=1e-5)
    assert float(radius) < 0.2
    for method in ("interval", "exact"):
        assert float(certified_radii(layer, x, labels, method)) == pytest.approx(0.2, abs=1e-4)
    flipped = layer(x + torch.tensor([[0.2001, 0.0]])).argmax(1)
    assert int(flipped) == 1


def test_a_linear_classifier_is_certified_exactly_in_both_norms() -> None:
    """LIP-7: a pair's constant is ||A_y - A_k||; where nothing is known but a bound in l2, sqrt(2) L."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.rand(50, 6, dtype=torch.float64)
    logits = layer(x).detach()
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    for norm, dual in (("linf", 1), ("l2", 2)):
        apart = (layer.weight[labels][:, None] - layer.weight).detach().norm(dual, dim=-1)
        expected = torch.where(apart > 0, gaps / apart, math.inf).amin(1)
        found = certified_radii(layer, x, labels, norm=norm, clip=None)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        wrapped = certified_radii(nn.Sequential(layer, nn.Identity()), x, labels, norm=norm, clip=None)
        assert (wrapped <= found * (1 + 1e-9)).all()
    with torch.no_grad():  # rows +-v: the bound by the norm of the matrix is attained
        layer.weight[:2] = torch.stack([layer.weight[0], -layer.weight[0]])
        layer.weight[2:] = 0
        layer.bias.copy_(torch.tensor([0, 0, -9, -9]))
    labels = layer(x).argmax(1)
    one = certified_radii(layer, x, labels, norm="l2", clip=None)
    two = certified_radii(nn.Sequential(layer, nn.Identity()), x, labels, norm="l2", clip=None)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_a_network_of_constant_one_in_l2_stands_against_gradient_steps() -> None:
    torch.manual_seed(0)
    network = LipschitzNetwork((1, 6, 6), (16,), 3, channels=(4,)).eval()
    x = torch.rand(16, 1, 6, 6)
    labels = network(x).argmax(1)
    radius = certified_radii(network, x, labels, norm="l2").float().view(-1, 1, 1, 1)
    z = x.clone()
    for _ in range(20):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(margins(network, z, labels).sum(), z)
        with torch.no_grad():
            step = z - 0.2 * radius * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
            away = step - x
            length = away.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
            z = x + away * (radius / length).clamp_max(1) * (1 - 1e-6)
            assert (network(z).argmax(1) == labels).all()


def test_wrong_samples_have_radius_zero() -> None:
    network, x = build(["signed"], "signed erosion", torch.Generator().manual_seed(0))
    labels = network(x).argmin(1)
    for method in ("lipschitz", "interval", "exact"):
        assert (certified_radii(network, x, labels, method) == 0).all()


def test_radii_of_bisection_are_certified() -> None:
    network, x = build(["signed", "linear"], "signed dilation", torch.Generator().manual_seed(3))
    labels = network(x).argmax(1)
    radii = certified_radii(network, x, labels, "interval", limit=0.5)
    some = radii > 0
    assert some.any()
    assert (certified_margins(network, x[some], labels[some], radii[some]) > 0).all()
    beyond = (radii[some] + 1e-4).clamp_max(0.5)
    assert ((certified_margins(network, x[some], labels[some], beyond) <= 0) | (beyond == 0.5)).all()


def test_bad_questions_have_one_answer() -> None:
    network, x = build(["signed"], "linear", torch.Generator().manual_seed(0))
    labels = torch.zeros(8, dtype=torch.long)
    with pytest.raises(ConfigError, match="method must be one of lipschitz"):
        certified_margins(network, x, labels, 0.1, "guess")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for norm='l2' use method='lipschitz'"):
        certified_margins(network, x, labels, 0.1, norm="l2")
    with pytest.raises(ConfigError, match=r"0\.03137"):
        certified_margins(network, x, labels, 8, "lipschitz")
    with pytest.raises(ConfigError, match="limit"):
        certified_radii(network, x, labels, "interval", clip=None)
    with pytest.raises(ShapeError, match="class for each sample"):
        certified_margins(network, x, labels[:3], 0.1)
    with pytest.raises(DataError, match=r"labels must lie in 0 \.\. 2"):
        certified_margins(network, x, labels + 7, 0.1)
    with pytest.raises(DataError, match="outside clip"):
        certified_margins(network, x + 2, labels, 0.1, "lipschitz")
    with pytest.raises(ShapeError, match="classes >= 2"):
        certified_margins(network[:1], x[:, :, :1], labels, 0.1)


@pytest.mark.parametrize("kind", [Sum, Residual])
def test_large_numbers_that_cancel_inside_a_branch_are_counted(kind) -> None:
    """In float32, numbers near 1e7 are whole: what comes back from there is off by up to a half."""
    up, down = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        for linear, bias in ((up, 1e7), (down, -1e7)):
            linear.weight.copy_(torch.eye(3))
            linear.bias.fill_(bias)
    network = nn.Sequential(kind(nn.Sequential(up, down))).eval()
    x = torch.rand(50, 3)
    truth = network.double()(x.double())
    off = (network.float()(x).double() - truth).abs().amax(1)
    _, error = forward_error(network, certify(network, "linf"), x, 0.1)
    assert off.max() > 0.1
    assert (error >= off).all()
