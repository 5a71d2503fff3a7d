"""Suprema of erosions without their dominated terms: the same for every input."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from morphlightning import structure
from morphlightning.errors import ConfigError
from morphlightning.layers import Erosion, Erosion2d, SupOfErosions, SupOfErosions1d, SupOfErosions2d, SupOfErosions3d
from morphlightning.structure.basis import minimal

WEIGHTS = st.sampled_from([-math.inf, 0.0, 1.0, 2.0])
LAYERS = {
    "dense": lambda: (SupOfErosions(5, 3, terms=6), (7, 5)),
    "signals": lambda: (SupOfErosions1d(2, 3, 2, terms=5), (4, 2, 9)),
    "images": lambda: (SupOfErosions2d(1, 2, (1, 3), terms=6), (2, 1, 6, 7)),
    "strided": lambda: (SupOfErosions2d(2, 2, (2, 1), terms=6, stride=2, dilation=2, border="reflect"), (2, 2, 8, 7)),
    "constant border": lambda: (SupOfErosions2d(1, 2, (1, 3), terms=6, border="constant", value=1.0), (2, 1, 6, 7)),
    "summed channels": lambda: (SupOfErosions2d(2, 2, (1, 2), terms=6, merge="sum"), (2, 2, 6, 7)),
    "depthwise": lambda: (SupOfErosions1d(3, 3, 3, terms=6, groups=3), (4, 3, 9)),
    "grouped": lambda: (SupOfErosions2d(2, 4, (2, 1), terms=5, groups=2), (2, 2, 6, 7)),
    "volumes": lambda: (SupOfErosions3d(1, 2, (1, 2, 2), terms=6), (2, 1, 3, 4, 5)),
}


def with_integers(layer, missing=0.3):
    """Weights of 0 to 2, some missing: many dominated terms and many ties."""
    weight = layer.erosion.weight
    weight.data = torch.randint(0, 3, weight.shape).to(weight)
    mask = torch.rand(weight.shape) > missing
    mask.flatten(1)[:, 0] = True
    layer.erosion.mask = mask
    return layer


def basis_by_hand(rows):
    """Rows not above another one; of equal rows the first."""
    kept = []
    for m, row in enumerate(rows):
        below = [
            other != row or earlier < m
            for earlier, other in enumerate(rows)
            if earlier != m and all(a >= b for a, b in zip(row, other, strict=True))
        ]
        if not any(below):
            kept.append(m)
    return kept


def supremum(rows, x):
    return max(min(a - b for a, b in zip(x, row, strict=True)) for row in rows)


ROWS = st.tuples(WEIGHTS, WEIGHTS, WEIGHTS).filter(lambda row: max(row) > -math.inf)


@given(st.lists(ROWS, min_size=1, max_size=7))
def test_minimal_rows_are_the_smallest_set_that_computes_the_supremum(rows):
    kept = minimal(torch.tensor(rows)).tolist()
    assert kept == basis_by_hand(rows)
    inputs = list(itertools.product((-1.0, 0.0, 1.0, 2.0, 3.0, math.inf), repeat=3))
    full = [supremum(rows, x) for x in inputs]
    assert [supremum([rows[m] for m in kept], x) for x in inputs] == full
    for lost in kept:
        fewer = [rows[m] for m in kept if m != lost]
        itself = tuple(max(b, -9.0) for b in rows[lost])
        assert supremum(rows, itself) == 0
        assert not fewer or supremum(fewer, itself) < 0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_is_the_same_bit_for_bit(name, dtype):
    layer, shape = LAYERS[name]()
    layer = with_integers(layer).to(dtype)
    basis = structure.minimal_basis(layer)
    assert len(basis.erosion.weight) < len(layer.erosion.weight)
    for x in (torch.randn(shape), torch.randint(0, 3, shape), torch.zeros(shape), 100 * torch.randn(shape)):
        assert torch.equal(basis(x.to(dtype)), layer(x.to(dtype)))
    if name != "summed channels":  # inf - inf
        x = torch.randn(shape).to(dtype)
        x.view(-1)[::3], x.view(-1)[1::5] = math.inf, -math.inf
        assert torch.equal(basis(x), layer(x))


@pytest.mark.parametrize("name", ["dense", "images", "grouped"])
def test_output_is_the_same_where_weights_are_close(name):
    layer, shape = LAYERS[name]()
    weight = layer.erosion.weight
    weight.data = 1 + 1e-7 * torch.randint(0, 3, weight.shape)
    basis = structure.minimal_basis(layer)
    x = 1000 * torch.randn(shape)
    assert torch.equal(basis(x), layer(x))


def test_unbatched_inputs_and_more_axes():
    layer = with_integers(SupOfErosions2d(1, 2, (1, 3), terms=6))
    x = torch.randn(1, 5, 6)
    assert torch.equal(structure.minimal_basis(layer)(x), layer(x))
    layer = with_integers(SupOfErosions(4, 2, terms=6))
    x = torch.randn(2, 3, 4)
    assert torch.equal(structure.minimal_basis(layer)(x), layer(x))


def test_groups_keep_equally_many():
    layer = SupOfErosions1d(2, 2, 2, terms=3, groups=2)
    layer.erosion.weight.data = torch.tensor([[[0.0, 9]], [[9, 0]], [[4, 4]], [[1, 1]], [[2, 2]], [[1, 1]]])
    basis = structure.minimal_basis(layer)
    assert basis.terms == (3, 3)
    assert basis.erosion.weight[3:].flatten().tolist() == [1.0] * 6
    alone = structure.minimal_basis(with_weights(SupOfErosions(2, 2, terms=3), layer.erosion.weight.flatten(1)))
    assert alone.terms == (3, 1)


def with_weights(layer, weight):
    layer.erosion.weight.data = weight.detach().clone()
    return layer


def test_the_layer_stays_and_the_basis_trains():
    layer = with_integers(SupOfErosions(5, 3, terms=6))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    basis = structure.minimal_basis(layer)
    basis(torch.randn(8, 5)).sum().backward()
    assert basis.erosion.weight.grad.any()
    with torch.no_grad():
        basis.erosion.weight.add_(1)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name])


def test_state_dict_loads_into_a_basis_of_this_size(tmp_path):
    layer = with_integers(SupOfErosions2d(1, 2, 2, terms=6))
    basis = structure.minimal_basis(layer)
    torch.save(basis.state_dict(), tmp_path / "basis.pt")
    assert set(basis.state_dict()) == {"erosion.weight", "erosion.mask", "erosion.initialized"}
    fresh = structure.ErosionBasis(Erosion2d(1, sum(basis.terms), 2), basis.terms)
    fresh.load_state_dict(torch.load(tmp_path / "basis.pt", weights_only=True))
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(fresh(x), layer(x))
    assert f"terms={basis.terms}" in repr(basis)


def test_wrong_requests_are_refused():
    with pytest.raises(ConfigError, match="Linear is not a supremum of erosions"):
        structure.minimal_basis(nn.Linear(3, 2))
    for terms in ((2, 2), (5, 0), ()):
        with pytest.raises(ConfigError, match="for 5 erosions"):
            structure.ErosionBasis(Erosion(3, 5), terms)
