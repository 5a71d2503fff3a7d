"""Certificates of matrix factorizations, whose optimum singular value thresholding knows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphlightning.bregman import CrossEntropy, SquaredError
from morphlightning.guarantees.optimality import (
    Factor,
    Objective,
    ParallelSum,
    PolarSearch,
    certify_optimality,
    grown_slice,
)

ROWS, COLUMNS, WEIGHT = 12, 8, 2.0
SHORT = PolarSearch(starts=2, steps=8)


def thresholded(y: Tensor, weight: float) -> tuple[float, int]:
    """The least 1/2 |Y - Z|^2 + weight |Z|_* over matrices Z, by singular value thresholding, and the rank there."""
    values = torch.linalg.svdvals(y)
    kept = (values - weight).clamp_min(0)
    return float(0.5 * (values - kept).square().sum() + weight * kept.sum()), int((kept > 0).sum())


def nuclear_logistic(x: Tensor, y: Tensor, weight: float, steps: int = 3000) -> float:
    """The least mean cross-entropy of X B plus weight |B|_* over matrices B, by FISTA, an independent reference."""
    classes = int(y.max()) + 1
    hot = torch.nn.functional.one_hot(y, classes).double()
    step = 2 * len(x) / torch.linalg.matrix_norm(x, 2) ** 2
    old = ahead = torch.zeros(x.shape[1], classes, dtype=torch.float64)
    momentum = 1.0
    for _ in range(steps):
        slope = x.T @ ((x @ ahead).softmax(1) - hot) / len(x)
        left, values, right = torch.linalg.svd(ahead - step * slope, full_matrices=False)
        new = left @ torch.diag((values - step * weight).clamp_min(0)) @ right
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - old)
        old, momentum = new, following
    loss = torch.nn.functional.cross_entropy(x @ old, y)
    return float(loss + weight * torch.linalg.svdvals(old).sum())


@pytest.fixture(scope="module")
def matrix():
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.2, 2, COLUMNS, dtype=torch.float64)
    return torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) * scales


def factors(count: int, seed: int = 0, capacity: int | None = None, start: float = 1.0) -> ParallelSum:
    generator = torch.Generator().manual_seed(seed)
    return ParallelSum(Factor(ROWS, COLUMNS), count, capacity, start, generator).double()


def of(network: ParallelSum, matrix: Tensor) -> Objective:
    """Half the squared distance of the sum of factors from the matrix; the mean over rows as the package has it."""
    return Objective(network, SquaredError(), torch.eye(ROWS, dtype=torch.float64), matrix, WEIGHT / ROWS)


@pytest.fixture(scope="module")
def fit(descend):
    def run(network: ParallelSum, matrix: Tensor, steps: int = 2000) -> None:
        descend(network, SquaredError(), torch.eye(ROWS, dtype=torch.float64), matrix, WEIGHT / ROWS, steps)

    return run


def test_enough_factors_reach_the_optimum_and_fewer_are_refuted(matrix, fit) -> None:
    """HV-1."""
    best, rank = thresholded(matrix, WEIGHT)
    assert 2 <= rank < COLUMNS
    for count in (1, rank - 1, rank, COLUMNS):
        network = factors(count)
        fit(network, matrix)
        report = certify_optimality(of(network, matrix))
        excess = ROWS * report.objective - best
        spectral = torch.linalg.matrix_norm(matrix - network(torch.eye(ROWS, dtype=torch.float64)), 2) / WEIGHT
        assert report.polar_upper == pytest.approx(spectral.item(), rel=1e-9)
        assert report.polar_lower == pytest.approx(spectral.item(), rel=1e-9)
        assert report.gap is not None
        assert report.gap * ROWS >= excess - 1e-10
        assert report.balance_max < 1e-6
        if count < rank:
            assert excess > 1e-2
            assert report.verdict == "refuted"
            assert report.polar_lower > 1.01
        else:
            assert abs(excess) < 1e-8
            assert report.verdict == "certified"
            assert report.gap * ROWS < 1e-4


def test_the_zero_network_is_balanced_and_refuted(matrix, fit) -> None:
    """HV-2: stationary with zero slices, and not optimal."""
    best, _ = thresholded(matrix, WEIGHT)
    network = factors(5)
    for tensor in network.slices.values():
        tensor.data.zero_()
    problem = of(network, matrix)
    report = certify_optimality(problem)
    assert (report.balance_max, report.zero_slices) == (0.0, 5)
    assert report.verdict == "refuted"
    assert report.polar_lower == pytest.approx((torch.linalg.matrix_norm(matrix, 2) / WEIGHT).item(), rel=1e-9)
    assert report.gap * ROWS >= ROWS * report.objective - best > 1

    single = factors(1, capacity=4)
    fit(single, matrix)
    single.arrange([0])
    nothing = {name: torch.zeros_like(tensor[0]) for name, tensor in single.slices.items()}
    single.append(nothing)
    report = certify_optimality(of(single, matrix))
    assert report.balance_max < 1e-6
    assert report.zero_slices == 1
    assert report.verdict == "refuted"


def test_growing_from_nothing_stops_at_the_rank(matrix, fit) -> None:
    """HV-1: the meta-algorithm appends the polar direction until there is none that pays."""
    best, rank = thresholded(matrix, WEIGHT)
    network = factors(0, capacity=COLUMNS)
    assert torch.equal(network(torch.eye(ROWS, dtype=torch.float64)), torch.zeros(ROWS, COLUMNS, dtype=torch.float64))
    while (report := certify_optimality(of(network, matrix))).polar_lower > 1 + 1e-5:
        before = of(network, matrix).value()
        grown = grown_slice(of(network, matrix), report.direction)
        network.append(grown)
        assert of(network, matrix).value() < before
        fit(network, matrix)
    assert network.count == rank
    assert abs(ROWS * report.objective - best) < 1e-8
    assert grown_slice(of(network, matrix), {n: -t[0] for n, t in network.slices.items()}) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10), st.floats(0.01, 4), st.integers(0, 15))
def test_the_gap_is_never_below_the_distance_to_the_optimum(fit, seed, count, start, steps) -> None:
    """HV-1: wherever the parameters are."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    best, _ = thresholded(matrix, WEIGHT)
    network = factors(count, seed, start=start, capacity=count + 1)
    if steps:
        fit(network, matrix, steps)
    report = certify_optimality(of(network, matrix), SHORT)
    excess = report.objective - best / ROWS
    assert report.gap >= excess - 1e-10
    assert report.gap_estimated <= report.gap + 1e-10
    if report.polar_lower > 1 + 1e-4:
        network.append(grown_slice(of(network, matrix), report.direction))
        assert of(network, matrix).value() < report.objective


def classes(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(6, 4, generator=generator, dtype=torch.float64)).argmax(1)
    return x, y


def test_the_gap_of_cross_entropy_against_a_convex_solver(descend) -> None:
    """HV-3."""
    x, y = classes()
    weight = 0.03
    best = nuclear_logistic(x, y, weight)
    for count, expected in ((1, "refuted"), (4, "certified")):
        torch.manual_seed(0)
        network = ParallelSum(Factor(6, 4), count, generator=torch.Generator().manual_seed(1)).double()
        descend(network, CrossEntropy(), x, y, weight)
        report = certify_optimality(Objective(network, CrossEntropy(), x, y, weight))
        excess = report.objective - best
        assert report.verdict == expected
        assert report.gap >= excess - 1e-9
        assert (abs(excess) < 1e-8 and report.gap < 1e-4) == (expected == "certified")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3), st.sampled_from([0.003, 0.03, 0.3]))
def test_the_gap_of_cross_entropy_is_never_too_small(descend, seed, start, weight) -> None:
    """HV-3: F* is at most the value at any point, here at a descended one."""
    x, y = classes(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ParallelSum(Factor(6, 4), 4, start=start, generator=generator).double()
    report = certify_optimality(Objective(network, CrossEntropy(), x, y, weight), SHORT)
    descend(network, CrossEntropy(), x, y, weight, 30)
    below = Objective(network, CrossEntropy(), x, y, weight).value()
    assert report.lower_bound <= below + 1e-10
