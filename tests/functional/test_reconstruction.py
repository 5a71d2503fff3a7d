"""Geodesic reconstruction against scikit-image, and its gradient by provenance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import reconstruction

import morphlightning.functional as mf
from morphlightning.errors import ConfigError, DtypeError, ShapeError

SPACE = {1: (17,), 2: (9, 11), 3: (5, 6, 4)}
SIGNS = [("dilation", 1), ("erosion", -1)]


def operator(kind: str, rank: int):
    return getattr(mf, f"reconstruction_by_{kind}{rank}d")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("kind", "sign"), SIGNS)
@given(seed=st.integers(0, 10_000), integers=st.booleans())
@settings(max_examples=10, deadline=None, derandomize=True)
def test_scikit_image(rank: int, kind: str, sign: int, seed: int, integers: bool) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.integers(0, 5, SPACE[rank]).astype(float) if integers else draw.normal(size=SPACE[rank])
    seeds = mask - sign * np.where(draw.random(SPACE[rank]) < 0.2, 0.0, draw.integers(0, 4, SPACE[rank]))
    seen = operator(kind, rank)(torch.from_numpy(seeds)[None, None], torch.from_numpy(mask)[None, None])
    footprint = np.ones((3,) * rank, dtype=bool)
    np.testing.assert_array_equal(seen[0, 0], reconstruction(seeds, mask, method=kind, footprint=footprint))


@pytest.mark.parametrize(("kind", "sign"), SIGNS)
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (1, 3)])
def test_footprints(kind: str, sign: int, shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(3)
    mask = draw.normal(size=(12, 10))
    seeds = mask - sign * draw.integers(0, 3, mask.shape)
    footprint = draw.random(shape) < 0.6
    footprint[shape[0] // 2, shape[1] // 2] = True
    footprint |= footprint[::-1, ::-1]  # scikit-image reads an asymmetric footprint the other way round
    seen = operator(kind, 2)(torch.from_numpy(seeds)[None], torch.from_numpy(mask)[None], torch.from_numpy(footprint))
    np.testing.assert_array_equal(seen[0], reconstruction(seeds, mask, method=kind, footprint=footprint))


def test_an_asymmetric_footprint_grows_as_a_dilation_does() -> None:
    seeds, mask = torch.zeros(1, 1, 5), torch.ones(1, 1, 5)
    seeds[..., 2] = 1
    ahead = torch.tensor([False, True, True])
    assert operator("dilation", 1)(seeds, mask, ahead).flatten().tolist() == [0, 0, 1, 1, 1]
    assert operator("erosion", 1)(-seeds, -mask, ahead).flatten().tolist() == [-1, -1, -1, 0, 0]


@pytest.mark.parametrize(("kind", "sign"), SIGNS)
def test_seeds_beyond_the_mask_are_cut_and_nothing_is_left_to_do_twice(kind: str, sign: int) -> None:
    mask, seeds = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    once = operator(kind, 2)(seeds, mask)
    assert (sign * once <= sign * mask).all()
    assert torch.equal(operator(kind, 2)(once, mask), once)
    cut = torch.minimum(seeds, mask) if sign > 0 else torch.maximum(seeds, mask)
    assert torch.equal(operator(kind, 2)(cut, mask), once)


@pytest.mark.parametrize(("kind", "sign"), SIGNS)
@pytest.mark.parametrize("rank", [1, 2])
def test_gradient(kind: str, sign: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randn(2, 1, *(7, 6)[:rank], generator=generator, dtype=torch.float64)
    seeds = mask - sign * 0.7 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) + 0.1 * sign
    seeds, mask = seeds.requires_grad_(), mask.requires_grad_()
    assert torch.autograd.gradcheck(operator(kind, rank), (seeds, mask))
    y = operator(kind, rank)(seeds, mask)
    gy = torch.randn_like(y)
    to_seed, to_mask = torch.autograd.grad(y, (seeds, mask), gy)
    torch.testing.assert_close((to_seed + to_mask).sum((1, *range(2, y.ndim))), gy.sum((1, *range(2, y.ndim))))
    # each output is a value of the seed or of the mask
    assert torch.isin(y, torch.cat([seeds.flatten(), mask.flatten()])).all()


def test_memory_does_not_grow_with_the_number_of_iterations() -> None:
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    seeds, mask = torch.zeros(1, 1, 200), torch.ones(1, 1, 200)
    seeds[..., 0] = 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = operator("dilation", 1)(seeds.requires_grad_(), mask)
    assert sum(saved) <= 2 * seeds.numel()
    y.sum().backward()
    assert seeds.grad[0, 0, 0] == 200


def test_empty_batch_half_precision_and_nan() -> None:
    for rank, shape in ((1, (0, 2, 5)), (2, (0, 2, 4, 5))):
        empty = torch.zeros(shape, requires_grad=True)
        y = operator("dilation", rank)(empty, torch.zeros(shape))
        assert y.shape == shape
        y.sum().backward()
    mask, seeds = torch.randn(1, 1, 6, 6).bfloat16(), torch.randn(1, 1, 6, 6).bfloat16()
    assert torch.equal(
        operator("dilation", 2)(seeds, mask).float(), operator("dilation", 2)(seeds.float(), mask.float())
    )
    mask[..., 3, 3] = float("nan")
    assert operator("erosion", 2)(seeds, mask)[..., 3, 3].isnan()


def test_wrong_inputs() -> None:
    x = torch.zeros(1, 1, 5, 5)
    with pytest.raises(ShapeError, match=r"reconstruction_by_dilation2d: seed .* and mask .* must have the same shape"):
        mf.reconstruction_by_dilation2d(x, x[..., :4])
    with pytest.raises(ShapeError, match="expected"):
        mf.reconstruction_by_dilation3d(x[0], x[0])
    with pytest.raises(ConfigError, match="flat windows only"):
        mf.reconstruction_by_erosion2d(x, x, torch.zeros(3, 3))
    with pytest.raises(ConfigError, match="boolean tensor of 2 axes"):
        mf.reconstruction_by_erosion2d(x, x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="window size"):
        mf.reconstruction_by_erosion2d(x, x, 0)
    with pytest.raises(DtypeError, match=r"mask is torch\.int64"):
        mf.reconstruction_by_erosion2d(x, x.long())
