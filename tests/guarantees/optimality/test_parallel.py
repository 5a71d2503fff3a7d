"""Homogeneous subnetworks and their sums: what they compute, what they refuse, how they grow and are saved."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning.bregman import SquaredError
from morphlightning.errors import BrokenCertificateError, ConfigError, DataError
from morphlightning.guarantees.optimality import (
    PENALTIES,
    Factor,
    Gain,
    GainDilation,
    HomogeneousNetwork,
    Neuron,
    Objective,
    ParallelSum,
    PolarBound,
    PolarSearch,
    Shards,
    arrange_optimizer_,
    certify_optimality,
    homogeneity_defect,
    output_loss_of,
)
from morphlightning.layers import Closing, Dilation, Erosion, SoftDilation


def deep(inputs: int = 5) -> nn.Module:
    return nn.Sequential(Dilation(inputs, 4), Erosion(4, 3), Dilation(3, 2))


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------- homogeneity
def test_max_plus_networks_are_homogeneous_in_gain_form_alone() -> None:
    x = values(20, 5)

    def of(module: nn.Module) -> float:
        parameters = {name: values(*p.shape, seed=len(name)) for name, p in module.named_parameters()}
        call = torch.func.functional_call
        return homogeneity_defect(lambda data, k: call(module.double(), dict(k), (data,)), parameters, x, 1)

    assert of(deep()) > 0.1
    assert of(Gain(deep())) < 1e-14
    assert of(Gain(nn.Sequential(Closing(5, 3), Dilation(5, 2)))) < 1e-14
    assert of(Gain(nn.Sequential(SoftDilation(5, 2)))) > 1e-2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.integers(1, 4))
def test_gain_form_is_the_network_with_divided_weights(seed, gain, outputs) -> None:
    network = Gain(Dilation(5, outputs)).double()
    x = values(6, 5, seed=seed)
    with torch.no_grad():
        network.gain.fill_(gain)
        network.network.weight.copy_(values(outputs, 5, seed=seed + 1))
        expected = gain * (x[:, None] + network.network.weight / gain).amax(2)
        torch.testing.assert_close(network(x), expected)


def test_missing_weights_stay_missing() -> None:
    mask = torch.tensor([[True, False, True, False, True]])
    network = HomogeneousNetwork(Gain(Dilation(5, 1, mask=mask)), (5,), 1)
    total = ParallelSum(network, 3, generator=torch.Generator().manual_seed(0)).double()
    assert not total.slices["network/weight"][:, ~mask].any()
    x = values(10, 5)
    x[:, ~mask[0]] = 1e6  # seen by nobody
    y = total(x)
    assert y.isfinite().all()
    assert y.abs().max() < 100
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in total.parameters())


def test_networks_of_the_wrong_degree_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"phi is not positively homogeneous of degree 1 .* use Gain"):
        HomogeneousNetwork(Dilation(4, 2), (4,), 1)
    biased = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="degree 2"):
        HomogeneousNetwork(biased, (4,), 2)
    with pytest.raises(ConfigError, match=r"'norm' has degree 1 .* phi has degree 2"):
        HomogeneousNetwork(nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2, bias=False)), (4,), 2, "norm")
    with pytest.raises(ConfigError, match="'product' has degree 1 for 1 blocks"):
        HomogeneousNetwork(Gain(deep(4)), (4,), 2, "product")
    with pytest.raises(ConfigError, match="unknown; choose one of norm"):
        HomogeneousNetwork(Gain(deep(4)), (4,), 1, "l1")
    with pytest.raises(ConfigError, match="no parameters"):
        HomogeneousNetwork(nn.ReLU(), (4,), 1)
    with pytest.raises(ConfigError, match="wrap a module in HomogeneousNetwork"):
        ParallelSum(nn.Linear(2, 2), 3)
    with pytest.raises(ConfigError, match="expected 0 <= count <= capacity"):
        ParallelSum(Factor(2, 2), 3, 2)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(PENALTIES)), st.integers(1, 4), st.integers(0, 10**6))
def test_penalties_are_homogeneous_and_power_is_above_the_product(name, blocks, seed) -> None:
    norms = values(3, blocks, seed=seed).abs()
    value, degree = PENALTIES[name].value, PENALTIES[name].degree(blocks)
    torch.testing.assert_close(value(1.7 * norms), 1.7**degree * value(norms))
    assert (PENALTIES["power"].value(norms) >= PENALTIES["product"].value(norms) - 1e-12).all()
    even = norms[:, :1].expand(-1, blocks)
    torch.testing.assert_close(PENALTIES["power"].value(even), PENALTIES["product"].value(even))


# ------------------------------------------------------------------------------------------------- parallel sums
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("subnetwork", [GainDilation(6, 2), Neuron(6, 2), HomogeneousNetwork(Gain(deep(6)), (6,), 1)])
def test_the_sum_is_that_of_its_slices(subnetwork, dtype) -> None:
    total = ParallelSum(subnetwork, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = values(8, 6).to(dtype)
    each = subnetwork.phi(x, total.parameters_of_slices())
    assert total(x).dtype == dtype
    torch.testing.assert_close(total(x), each.sum(0))
    torch.testing.assert_close(total.penalties(), torch.ones(3, dtype=dtype), rtol=0.02, atol=0)
    total(x).float().square().sum().backward()
    for parameter in total.parameters():
        assert not parameter.grad[3:].any()
        assert parameter.grad.isfinite().all()


def test_gradients_are_right() -> None:
    for subnetwork in (GainDilation(4, 2), HomogeneousNetwork(Gain(deep(4)), (4,), 1, "norm"), Neuron(4, 2)):
        total = ParallelSum(subnetwork, 2, generator=torch.Generator().manual_seed(1)).double()
        names, tensors = zip(*total.slices.items(), strict=True)
        x = values(3, 4)

        def both(*tensors: Tensor, names=names, subnetwork=subnetwork, x=x) -> Tensor:
            stacked = dict(zip(names, tensors, strict=True))
            return subnetwork.phi(x, stacked).sum() + subnetwork.theta(stacked).sum()

        assert torch.autograd.gradcheck(both, tensors)


def test_a_sum_of_nothing_is_zero_and_grows() -> None:
    total = ParallelSum(GainDilation(3, 2), 0, 2)
    x = values(4, 3).float()
    y = total(x)
    assert torch.equal(y, torch.zeros(4, 2))
    y.sum().backward()
    assert not any(p.grad.any() for p in total.parameters())
    assert total.penalties().shape == total.norms().shape == (0,)
    direction = {name: t[0] for name, t in total.subnetwork.random(1).items()}
    assert total.append(direction) == 0
    torch.testing.assert_close(total(x), total.subnetwork.phi(x, {n: t[None] for n, t in direction.items()})[0])
    total.append(direction)
    with pytest.raises(ConfigError, match="all 2 slices are taken"):
        total.append(direction)


def test_slices_move_with_their_optimizer_state() -> None:
    total = ParallelSum(Factor(3, 2), 3, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(total.parameters(), lr=0.1)
    total(values(5, 3).float()).square().sum().backward()
    optimizer.step()
    before = {name: t.detach().clone() for name, t in total.slices.items()}
    momenta = {name: optimizer.state[t]["exp_avg"].clone() for name, t in total.slices.items()}
    total.arrange([2, 0])
    arrange_optimizer_(optimizer, total, [2, 0])
    assert total.count == 2
    for name, tensor in total.slices.items():
        assert torch.equal(tensor[:2], before[name][[2, 0]])
        assert torch.equal(optimizer.state[tensor]["exp_avg"][:2], momenta[name][[2, 0]])
        assert not tensor[2:].any()
        assert not optimizer.state[tensor]["exp_avg"][2:].any()
        assert optimizer.state[tensor]["step"] == 1
    optimizer.zero_grad()
    total(values(5, 3).float()).square().sum().backward()
    optimizer.step()
    assert not any(t[2:].any() for t in total.slices.values())  # what is free stays free


def test_a_saved_sum_comes_back_with_its_slices() -> None:
    grown = ParallelSum(Neuron(3, 2), 5, 8)
    other = ParallelSum(Neuron(3, 2), 1, 2)
    other.load_state_dict(grown.state_dict())
    assert (other.count, other.capacity) == (5, 8)
    x = values(4, 3).float()
    assert torch.equal(other(x), grown(x))
    same = ParallelSum(Neuron(3, 2), 1, 8)
    identity = [id(p) for p in same.parameters()]
    same.load_state_dict(grown.state_dict())
    assert [id(p) for p in same.parameters()] == identity
    assert torch.equal(same(x), grown(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        ParallelSum(Neuron(4, 2), 1, 8).load_state_dict(grown.state_dict())


# --------------------------------------------------------------------------------------------------- certificates
def test_losses_are_those_of_torch() -> None:
    z, y, labels = values(6, 3), values(6, 3, seed=1), torch.arange(6) % 3
    for loss, target in ((torch.nn.functional.mse_loss, y), (torch.nn.functional.cross_entropy, labels)):
        torch.testing.assert_close(output_loss_of(loss, 3)(z, target), loss(z, target))
    with pytest.raises(ConfigError, match="no bound of the global optimum is known for the loss"):
        output_loss_of(torch.nn.functional.l1_loss, 3)


def test_objectives_refuse_what_has_no_certificate() -> None:
    total, x, y = ParallelSum(Factor(3, 2), 1), values(5, 3), values(5, 2)
    with pytest.raises(ConfigError, match="weight of the penalty is 0"):
        Objective(total, SquaredError(), x, y, 0.0)
    with pytest.raises(DataError, match="NaN or infinite"):
        Objective(total, SquaredError(), x * math.inf, y, 0.1)
    with pytest.raises(DataError, match="5 inputs and 4 targets"):
        Objective(total, SquaredError(), x, y[:4], 0.1)


def test_a_wrong_bound_is_found_out() -> None:
    class Boasting(Factor):
        def polar_bound(self, x: Tensor, z: Tensor, shards: Shards) -> PolarBound:
            return PolarBound(0.5 * super().polar_bound(x, z, shards).value)

    total = ParallelSum(Boasting(3, 2), 1)
    with pytest.raises(BrokenCertificateError, match="the bound is wrong"):
        certify_optimality(Objective(total, SquaredError(), values(5, 3), values(5, 2), 0.1))


def test_without_a_bound_nothing_is_certified() -> None:
    total = ParallelSum(HomogeneousNetwork(Gain(deep()), (5,), 1), 2, generator=torch.Generator().manual_seed(0))
    x, y = values(20, 5), values(20, 2)
    heavy = certify_optimality(Objective(total, SquaredError(), x, y, 100.0), PolarSearch(2, 5))
    assert (heavy.verdict, heavy.gap, heavy.excess, heavy.polar_upper) == ("unknown", None, None, None)
    assert "certified" not in str(heavy)
    assert "no bound" in str(heavy)
    light = certify_optimality(Objective(total, SquaredError(), x, y, 1e-4), PolarSearch(2, 5))
    assert light.verdict == "refuted"
    assert light.gap is None
    assert light.gap_estimated > 0


def test_two_shards_certify_what_one_does() -> None:
    """Both processes in one, one after the other: sums are of what the other process had."""
    total = ParallelSum(GainDilation(3, 2), 2, generator=torch.Generator().manual_seed(0))
    x, y = values(9, 3), values(9, 2)
    whole = Objective(total, SquaredError(), x, y, 0.05)
    halves = [Objective(total, SquaredError(), x, y, 0.05, Shards(9, rank, 2, lambda t: t)) for rank in (0, 1)]
    assert sum(half.data_loss(half.output()) for half in halves) == pytest.approx(whole.data_loss(whole.output()))
    rows = [half.output() for half in halves]
    joined = torch.stack([rows[i % 2][i // 2] for i in range(9)])
    torch.testing.assert_close(joined, whole.output())
