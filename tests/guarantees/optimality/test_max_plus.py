"""Certificates of sums of max-plus subnetworks: one variable, where the polar is exact, and bounds elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from morphlightning_plugins.initializers import Residual
from scipy.optimize import minimize, nnls
from torch import Tensor, nn

from morphlightning.bregman import CrossEntropy, SquaredError
from morphlightning.guarantees.optimality import (
    Factor,
    Gain,
    GainDilation,
    HomogeneousNetwork,
    Neuron,
    Objective,
    ParallelSum,
    PolarSearch,
    Shards,
    certify_optimality,
    grown_slice,
    two_tap_polar,
)
from morphlightning.layers import Dilation, Erosion, initialize

SAMPLES, WEIGHT = 24, 0.3 / 24
SHORT = PolarSearch(starts=2, steps=8)


def curve(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Samples of a function of one variable: inputs (x, 0), as max(s x + w_1, w_2) takes them, and targets."""
    generator = torch.Generator().manual_seed(seed)
    x = (4 * torch.rand(SAMPLES, generator=generator, dtype=torch.float64) - 2).sort().values
    y = (2.2 * x).sin() + 0.3 * x + 0.1 * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    return torch.stack([x, torch.zeros_like(x)], 1), y[:, None]


def best_atom(x: np.ndarray, z: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest |sum z_n max(s x_n + w_1, w_2)| on the unit ball and the signed outputs there, by scipy's nnls.

    Where the samples from k on take tap 1, (s, w) lies in a cone: a multiple of (0, 1, 1), and a combination of two
    rays with non-negative coefficients, on which one of the samples at the border changes sides. The best point of the
    cone is along the projection of the slope onto it.
    """
    n, best, outputs = len(x), 0.0, np.zeros(len(x))
    for k, sign in itertools.product(range(n + 1), (1.0, -1.0)):
        later = np.arange(n) >= k
        slope = sign * np.array([(z * x)[later].sum(), z[later].sum(), z[~later].sum()])
        rays = [(1.0, -x[k]) if k < n else (0.0, -1.0), (1.0, -x[k - 1]) if k > 0 else (0.0, 1.0)]
        cone = np.array([[0, 1, 1], [0, -1, -1], *([s, d / 2, -d / 2] for s, d in rays)]).T
        p = cone @ nnls(cone, slope)[0]
        if np.linalg.norm(p) > best:
            best = np.linalg.norm(p)
            outputs = sign * np.maximum(p[0] * x + p[1], p[2]) / best
    return best, outputs


def lifted_optimum(x: Tensor, y: Tensor, weight: float) -> float:
    """The least objective over any number of slices: column generation, independent of the package and its polars."""
    x, y = x[:, 0].numpy(), y[:, 0].numpy()
    n = len(x)
    atoms, sizes = np.zeros((n, 0)), np.zeros(0)
    options = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-13}
    for _ in range(80):
        rest = y - atoms @ sizes
        polar, atom = best_atom(x, rest / n)
        if polar < weight * (1 + 1e-6):
            break
        atoms, sizes = np.column_stack([atoms, atom]), np.append(sizes, 0.0)

        def value(sizes: np.ndarray, atoms: np.ndarray = atoms) -> tuple[float, np.ndarray]:
            rest = atoms @ sizes - y
            return 0.5 * rest @ rest / n + weight * sizes.sum(), atoms.T @ rest / n + weight

        sizes = minimize(value, sizes, jac=True, bounds=[(0, None)] * len(sizes), method="L-BFGS-B", options=options).x
        atoms, sizes = atoms[:, sizes > 1e-12], sizes[sizes > 1e-12]
    rest = y - atoms @ sizes
    return float(0.5 * rest @ rest / n + weight * sizes.sum())


def settle(network: ParallelSum, x: Tensor, y: Tensor, steps: int = 250) -> None:
    """Minimize by Adam with falling rates, which kinks do not stop."""
    for rate in (2e-2, 2e-3, 2e-4):
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            (SquaredError()(network(x), y) + WEIGHT * network.penalties().sum()).backward()
            optimizer.step()


def test_the_exact_polar_of_two_taps_against_many_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    directions[:, 0].abs_()
    directions /= directions.norm(dim=1, keepdim=True)
    for case in range(4):
        x = torch.randn(15, 2, generator=generator, dtype=torch.float64)
        x[3] = x[4]  # a tie
        z = torch.randn(15, generator=generator, dtype=torch.float64) + (case == 3)
        value, (gain, *taps), sign = two_tap_polar(x, z)
        outputs = (directions[:, 0, None, None] * x + directions[:, None, 1:]).amax(2)
        best = (outputs @ z).abs().max().item()
        assert best <= value + 1e-12
        assert best >= 0.95 * value
        there = (gain * x + torch.tensor(taps, dtype=torch.float64)).amax(1) @ z
        assert sign * there.item() == pytest.approx(value, rel=1e-9)
        assert gain**2 + sum(t**2 for t in taps) <= 1 + 1e-12


def test_growing_by_the_exact_polar_reaches_the_optimum_of_the_convex_program() -> None:
    """HV-4."""
    x, y = curve()
    best = lifted_optimum(x, y, WEIGHT)
    network = ParallelSum(GainDilation(2), 0, 6).double()
    problem = Objective(network, SquaredError(), x, y, WEIGHT)
    verdicts = []
    while True:
        report = certify_optimality(problem, SHORT, tolerance=2e-3)
        excess = report.objective - best
        verdicts.append(report.verdict)
        assert report.gap >= excess - 1e-5 * best  # the reference is not exact either
        assert excess >= -1e-5 * best
        assert report.polar_lower == pytest.approx(report.polar_upper, rel=1e-9)
        if report.verdict == "certified":
            break
        network.append(grown_slice(problem, report.direction))
        assert problem.value() < report.objective
        settle(network, x, y)
    assert verdicts == ["refuted"] * 3 + ["certified"]
    assert report.objective == pytest.approx(best, rel=1e-3)


def test_a_bad_stationary_point_is_refuted() -> None:
    """HV-4: one slice cannot reach the optimum, and the certificate knows a second one that helps."""
    x, y = curve()
    best = lifted_optimum(x, y, WEIGHT)
    network = ParallelSum(GainDilation(2), 1, 2, generator=torch.Generator().manual_seed(0)).double()
    settle(network, x, y, 150)
    problem = Objective(network, SquaredError(), x, y, WEIGHT)
    report = certify_optimality(problem)
    assert report.verdict == "refuted"
    assert report.gap >= report.objective - best > 0.01
    network.append(grown_slice(problem, report.direction))
    assert problem.value() < report.objective


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.floats(0.01, 3), st.sampled_from([0.01, 0.03, 0.1]))
def test_the_gap_is_never_below_what_can_be_gained(seed, count, start, weight) -> None:
    """HV-4: any network has an objective above the certified lower bound of any other one."""
    x, y = curve(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ParallelSum(GainDilation(2), count, count + 1, start, generator).double()
    problem = Objective(network, SquaredError(), x, y, weight)
    report = certify_optimality(problem, SHORT)
    assert report.lower_bound <= lifted_optimum(x, y, weight) * (1 + 1e-7) + 1e-12
    if report.polar_lower > 1 + 1e-4:
        network.append(grown_slice(problem, report.direction))
        assert problem.value() < report.objective


def subnetworks(inputs: int, outputs: int) -> list[HomogeneousNetwork]:
    deep = Gain(nn.Sequential(Dilation(inputs, 4), Erosion(4, 3), Dilation(3, outputs)))
    mlp = nn.Sequential(
        nn.Linear(inputs, 3), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, outputs, bias=False)
    )
    image = nn.Sequential(
        nn.Unflatten(1, (1, 2, -1)),
        nn.Conv2d(1, 2, 2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, outputs, bias=False),
    )
    return [
        GainDilation(inputs, outputs),
        Neuron(inputs, outputs),
        HomogeneousNetwork(deep, (inputs,), 1),
        HomogeneousNetwork(mlp, (inputs,), 3),
        HomogeneousNetwork(mlp, (inputs,), 3, "product"),
        HomogeneousNetwork(image, (inputs,), 2),
    ]


def test_balances_are_what_eulers_identity_says() -> None:
    """HV-5: the derivative of F along a slice is minus p times its balance."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    for subnetwork in subnetworks(6, 3):
        network = ParallelSum(subnetwork, 4, generator=generator).double()
        report = certify_optimality(Objective(network, CrossEntropy(), x, y, 0.1), SHORT)
        value = CrossEntropy()(network(x), y) + 0.1 * network.penalties().sum()
        value.backward()
        assert value.item() == pytest.approx(report.objective, rel=1e-12)
        along = sum((p * p.grad).flatten(1).sum(1) if p.ndim > 1 else p * p.grad for p in network.slices.values())
        torch.testing.assert_close(along, -subnetwork.degree * report.slice_balance, rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.floats(-3, 3))
def test_no_direction_exceeds_an_upper_bound_of_the_polar(seed, samples, inputs, outputs, shift) -> None:
    """The search is the attack on the bounds of neurons and dilations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64) + shift
    z = torch.randn(samples, outputs, generator=generator, dtype=torch.float64) + shift
    for subnetwork in (GainDilation(inputs, outputs), Neuron(inputs, outputs)):
        bound = subnetwork.polar_bound(x, z, Shards(samples)).value
        found = PolarSearch(4, 20, seed)(subnetwork, x, z, Shards(samples))
        assert found.value <= bound * (1 + 1e-12)


def test_no_start_is_lost_where_no_sample_activates_a_neuron() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 6, generator=generator, dtype=torch.float64) + 2
    z = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    assert all(PolarSearch(1, 40, seed)(Neuron(6, 2), x, z, Shards(30)).value > 0 for seed in range(12))


def test_the_search_mostly_finds_the_exact_polar() -> None:
    reached = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(100 + seed)
        x, _ = curve(seed)
        z = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
        found = PolarSearch(16, 60)(GainDilation(2), x, z, Shards(SAMPLES))
        reached.append(found.value / two_tap_polar(x, z[:, 0])[0])
    assert max(reached) <= 1 + 1e-9
    assert min(reached) > 0.9
    assert sum(ratio > 0.999 for ratio in reached) > 5


def test_half_the_largest_residual_is_the_optimum_of_residuation() -> None:
    """HV-6: the greatest dilation below the targets, raised by half its largest residual, is a best one in sup norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 4, generator=generator, dtype=torch.float64)
    y = (x + torch.tensor([0.2, -0.1, 0.0, 0.4])).amax(1, keepdim=True)
    y = y + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    layer = Dilation(4, 1, initializer=Residual()).double()
    initialize(layer, [(x, y)])
    with torch.no_grad():
        residual = y - layer(x)
        half = residual.max() / 2
        assert residual.min() > -1e-12
        layer.weight += half
        assert (y - layer(x)).abs().max().item() == pytest.approx(half.item(), rel=1e-12)

    def error(w: np.ndarray) -> float:
        return float((y[:, 0] - (x + torch.from_numpy(w)).amax(1)).abs().max())

    start = layer.weight[0].detach().numpy()
    draws = np.random.default_rng(0)
    tries = [start + spread * draws.normal(size=4) for spread in (0.0, 0.02, 0.1, 0.3)]
    options = {"maxiter": 400, "xatol": 1e-10, "fatol": 1e-12}
    best = min(minimize(error, one, method="Nelder-Mead", options=options).fun for one in tries)
    assert best >= half.item() - 1e-12


def test_stacked_evaluation_is_that_of_single_networks() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    for subnetwork in [*subnetworks(6, 3), Factor(6, 3)]:
        stacked = {name: tensor.double() for name, tensor in subnetwork.random(3, generator).items()}
        torch.testing.assert_close(subnetwork.phi(x, stacked), HomogeneousNetwork.phi(subnetwork, x, stacked))
        torch.testing.assert_close(subnetwork.theta(stacked), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
