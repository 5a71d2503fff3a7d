from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morphlightning import layers
from morphlightning.errors import DtypeError, ShapeError
from morphlightning.lipschitz import certify, falsify


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["l2", "linf"]), st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8))
def test_it_finds_the_norm_of_a_matrix(norm: str, seed: int, rows: int, columns: int) -> None:
    module = nn.Linear(columns, rows)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    module.weight.data.copy_(weight)
    exact = torch.linalg.matrix_norm(weight.double(), 2 if norm == "l2" else torch.inf).item()
    found = falsify(module, torch.randn(12, columns), norm, steps=200)  # type: ignore[arg-type]
    assert found.ratio <= exact * (1 + 1e-9)
    assert found.ratio >= 0.97 * exact  # the power method may stay at a smaller local maximum in linf


def test_the_ratio_is_that_of_the_pair() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), layers.SignedDilation(5, 3)).eval()
    pair = falsify(module, torch.rand(4, 2, 3), "l2", "linf")
    module = module.double()
    moved = (module(pair.x[None]) - module(pair.y[None])).abs().max() / (pair.x - pair.y).norm()
    assert pair.ratio == pytest.approx(moved.item(), rel=1e-9)
    assert 0.1 * certify(module, "l2").constant < pair.ratio <= certify(module, "l2").constant


def test_a_wrong_constant_is_found_and_a_right_one_is_reached() -> None:
    network = nn.Sequential(layers.SignedDilation(6, 6), layers.MeanShift(6), layers.SignedErosion(6, 4)).eval()
    assert falsify(network, torch.rand(10, 6), "linf").ratio == pytest.approx(1, abs=1e-9)
    network.append(nn.Linear(4, 4, bias=False))
    network[-1].weight.data.copy_(1.01 * torch.eye(4))
    assert falsify(network, torch.rand(10, 6), "linf").ratio == pytest.approx(1.01, rel=1e-6)


def test_equal_samples_and_one_sample_are_enough() -> None:
    module = nn.Linear(4, 3)
    for x in (torch.zeros(5, 4), torch.rand(1, 4)):
        exact = torch.linalg.matrix_norm(module.weight.detach().double(), 2).item()
        assert falsify(module, x, steps=300).ratio == pytest.approx(exact, rel=1e-3)


def test_it_leaves_no_trace_and_works_in_inference_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.rand(5, 4)
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    first = falsify(module, x)
    with torch.inference_mode():
        again = falsify(module, x.clone())
    assert first.ratio == again.ratio
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in module.parameters())


def test_a_constant_map_has_the_ratio_zero() -> None:
    module = nn.Linear(3, 2)
    module.weight.data.zero_()
    assert falsify(module, torch.rand(4, 3), "linf").ratio == 0


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match="a batch of samples"):
        falsify(nn.Identity(), torch.rand(3))
    with pytest.raises(DtypeError, match="floating-point"):
        falsify(nn.Identity(), torch.ones(3, 2, dtype=torch.int64))
