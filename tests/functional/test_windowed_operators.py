"""Windowed operators against scipy, kornia, torch's pooling and the definition."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import morphlightning.functional as mf
from morphlightning.errors import ConfigError, DtypeError, ShapeError

WINDOWS = [
    (1, (3,)),
    (1, (4,)),
    (1, (1,)),
    (2, (3, 3)),
    (2, (2, 2)),
    (2, (3, 4)),
    (2, (5, 2)),
    (3, (3, 2, 3)),
]
SPACE = {1: (11,), 2: (8, 9), 3: (5, 6, 4)}
SCIPY_MODES = {"reflect": "mirror", "replicate": "nearest", "circular": "wrap"}


def image_and_window(rank: int, window: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=SPACE[rank]), draw.normal(size=window)


def ours(name: str, f: np.ndarray, b: np.ndarray | torch.Tensor | tuple[int, ...], **options) -> np.ndarray:
    b = torch.from_numpy(b) if isinstance(b, np.ndarray) else b
    return getattr(mf, f"{name}{f.ndim}d")(torch.from_numpy(f)[None, None], b, **options)[0, 0].numpy()


def same(seen: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
def test_dilation_and_erosion_are_those_of_scipy(rank: int, window: tuple[int, ...]) -> None:
    f, b = image_and_window(rank, window)
    kinds = [(b, {"structure": b}), (window, {"size": window})]
    footprint = np.random.default_rng(1).random(window) < 0.6
    footprint.flat[0] = True
    kinds.append((footprint, {"footprint": footprint}))
    for mine, theirs in kinds:
        same(ours("dilation", f, mine), ndimage.grey_dilation(f, mode="constant", cval=-math.inf, **theirs))
        same(ours("erosion", f, mine), ndimage.grey_erosion(f, mode="constant", cval=math.inf, **theirs))
        for border, mode in SCIPY_MODES.items():
            same(ours("dilation", f, mine, border=border), ndimage.grey_dilation(f, mode=mode, **theirs))
            same(ours("erosion", f, mine, border=border), ndimage.grey_erosion(f, mode=mode, **theirs))
        same(
            ours("dilation", f, mine, border="constant", value=0.3),
            ndimage.grey_dilation(f, mode="constant", cval=0.3, **theirs),
        )
        same(
            ours("erosion", f, mine, border="constant", value=0.3),
            ndimage.grey_erosion(f, mode="constant", cval=0.3, **theirs),
        )


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
def test_compositions_of_scipys_operators(rank: int, window: tuple[int, ...]) -> None:
    f, b = image_and_window(rank, window, 2)
    eroded = ndimage.grey_erosion(f, structure=b, mode="constant", cval=math.inf)
    dilated = ndimage.grey_dilation(f, structure=b, mode="constant", cval=-math.inf)
    opened = ndimage.grey_dilation(eroded, structure=b, mode="constant", cval=-math.inf)
    closed = ndimage.grey_erosion(dilated, structure=b, mode="constant", cval=math.inf)
    same(ours("opening", f, b), opened)
    same(ours("closing", f, b), closed)
    same(ours("gradient", f, b), dilated - eroded)
    same(ours("white_tophat", f, b), f - opened)
    same(ours("black_tophat", f, b), closed - f)


@pytest.mark.parametrize("window", [(3, 3), (5, 3)])
def test_scipys_own_compositions_agree_where_no_border_is_met(window: tuple[int, int]) -> None:
    """scipy passes one cval to both stages, so the frame is left out; 'mirror' needs none to be."""
    f, b = image_and_window(2, window, 3)
    inner = (slice(4, -4), slice(4, -4))
    f = np.pad(f, 4)
    for name, theirs in [
        ("opening", ndimage.grey_opening),
        ("closing", ndimage.grey_closing),
        ("white_tophat", ndimage.white_tophat),
        ("black_tophat", ndimage.black_tophat),
        ("gradient", ndimage.morphological_gradient),
    ]:
        same(ours(name, f, b)[inner], theirs(f, structure=b, mode="constant")[inner])
        same(ours(name, f, b, border="reflect"), theirs(f, structure=b, mode="mirror"))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("window", [(3, 3), (5, 3), (1, 7)])
def test_kornia(window: tuple[int, int], flat: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kornia.morphology as km

    f, b = torch.randn(2, 3, 8, 9), torch.randn(window)
    kernel = torch.ones(window)
    if flat:
        kernel[0, 0] = 0
        b = torch.zeros(window)
    mine = b.masked_fill(kernel == 0, -math.inf)
    extra = {} if flat else {"structuring_element": b}
    torch.testing.assert_close(mf.dilation2d(f, mine), km.dilation(f, kernel, **extra))
    torch.testing.assert_close(mf.erosion2d(f, mine), km.erosion(f, kernel, **extra))


@pytest.mark.parametrize(
    ("rank", "size", "stride", "padding"), [(1, 3, 2, 1), (2, 2, 2, 0), (2, 3, 2, 1), (3, 3, 1, 1)]
)
def test_flat_windows_are_max_pooling(rank: int, size: int, stride: int, padding: int) -> None:
    x = torch.randn(2, 3, *SPACE[rank], requires_grad=True)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    expected = pool(x, size, stride, padding)
    window = (size,) * rank
    gy = torch.randn_like(expected)
    for name, sign in (("dilation", 1), ("erosion", -1)):
        seen = sign * getattr(mf, f"{name}{rank}d")(sign * x, window, stride=stride, padding=padding)
        assert torch.equal(seen, expected)
        right = torch.autograd.grad(expected, x, gy, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(seen, x, gy), right)


def test_ties_go_where_max_pooling_sends_them() -> None:
    x = torch.randint(0, 2, (4, 2, 7, 7)).float().requires_grad_()
    expected = F.max_pool2d(x, 3, 2, 1)
    seen = mf.erosion2d(-x, 3, stride=2, padding=1)
    gy = torch.randn_like(expected)
    assert torch.equal(torch.autograd.grad(-seen, x, gy)[0], torch.autograd.grad(expected, x, gy)[0])


@st.composite
def calls(draw: st.DrawFn):
    rank = draw(st.sampled_from([1, 2, 2]))
    groups = draw(st.integers(1, 2))
    per_group, outs = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    window = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    space = tuple(draw(st.integers(5, 6)) for _ in range(rank))
    options = {
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(["same", "valid", 1])),
        "border": draw(st.sampled_from(["neutral", "reflect", "replicate", "circular", "constant"])),
        "value": 0.5,
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randint(-3, 4, (1, groups * per_group, *space), generator=generator).double()
    b = torch.randint(-3, 4, (groups * outs, per_group, *window), generator=generator).double()
    missing = torch.rand(b.shape, generator=generator) < 0.2
    return x, b.masked_fill(missing, -math.inf), groups, options


@given(calls(), st.sampled_from(["max", "sum"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_option_by_brute_force(window_oracle, call, merge: str) -> None:
    x, b, groups, options = call
    rank = x.ndim - 2
    for name, sign in (("dilation", 1), ("erosion", -1)):
        seen = getattr(mf, f"{name}{rank}d")(x, b, groups=groups, merge=merge, **options)
        expected = window_oracle.operator(x, b, sign, merge, groups=groups, **options)
        assert torch.equal(seen, expected), (name, options)
        with torch.no_grad():
            assert torch.equal(getattr(mf, f"{name}{rank}d")(x, b, groups=groups, merge=merge, **options), expected)


def test_same_padding_rounds_up() -> None:
    for n, stride, window in itertools.product((5, 6, 7), (1, 2, 3), (1, 2, 3, 4)):
        y = mf.dilation1d(torch.randn(1, 1, n), window, stride=stride)
        assert y.shape[-1] == math.ceil(n / stride)


def test_structuring_functions_of_all_shapes() -> None:
    x = torch.randn(2, 3, 6, 5)
    shared, each = torch.randn(3, 2), torch.randn(3, 3, 2)
    by_channel = torch.cat([mf.dilation2d(x[:, c : c + 1], each[c]) for c in range(3)], 1)
    assert torch.equal(mf.dilation2d(x, each), by_channel)
    assert torch.equal(mf.dilation2d(x, each.unsqueeze(1), groups=3), by_channel)
    assert torch.equal(mf.dilation2d(x, shared), mf.dilation2d(x, shared.expand(3, 3, 2)))
    assert torch.equal(mf.dilation2d(x[1], each), by_channel[1])  # no batch axis
    cross = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)
    assert torch.equal(mf.dilation2d(x, cross), mf.dilation2d(x, torch.zeros(3, 3).masked_fill(~cross, -math.inf)))
    full = torch.randn(4, 3, 3, 2)
    for merge, combine in (("max", lambda t: t.amax(1)), ("sum", lambda t: t.sum(1))):
        expected = torch.stack([combine(mf.dilation2d(x, full[o])) for o in range(4)], 1)
        torch.testing.assert_close(mf.dilation2d(x, full, merge=merge), expected)


def test_inputs_in_any_memory_format() -> None:
    x = torch.randn(2, 5, 7, 4).permute(0, 3, 1, 2)
    b = torch.randn(3, 2, 4, 6).permute(2, 3, 0, 1)[:, :4]
    y = mf.dilation2d(x, b)
    assert torch.equal(y, mf.dilation2d(x.contiguous(), b.contiguous()))
    z = x.clone(memory_format=torch.channels_last).requires_grad_()
    plain = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    for a in (z, plain):
        mf.erosion2d(a, b).square().sum().backward()
    assert torch.equal(z.grad, plain.grad)


def test_wrong_shapes_and_dtypes() -> None:
    x = torch.randn(2, 3, 6, 5)
    with pytest.raises(DtypeError, match=r"dilation2d: x is torch.uint8"):
        mf.dilation2d(x.byte(), 3)
    with pytest.raises(DtypeError, match=r"erosion2d: b is torch.int64"):
        mf.erosion2d(x, torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"opening2d: x has shape \(6, 5\), expected \(batch, channels, height, wid"):
        mf.opening2d(x[0, 0], 3)
    with pytest.raises(ShapeError, match=r"dilation1d: x has shape .*length"):
        mf.dilation1d(x, 3)
    with pytest.raises(ShapeError, match=r"b has shape \(2, 3, 3\) and x 3 channels \(axis -3\)"):
        mf.dilation2d(x, torch.zeros(2, 3, 3))
    with pytest.raises(ShapeError, match=r"groups=2"):
        mf.dilation2d(x, torch.zeros(4, 2, 3, 3), groups=2)
    with pytest.raises(ShapeError, match="structuring function is empty"):
        mf.dilation2d(x, torch.zeros(0, 3))
    with pytest.raises(ShapeError, match="window of extent 7 does not fit axis -1 of x, which has 5"):
        mf.dilation2d(x, (1, 7), padding="valid")
    with pytest.raises(ShapeError, match="does not fit axis -2"):
        mf.dilation2d(x[:, :, :0], 3)
    with pytest.raises(ShapeError, match=r"border='reflect' can add at most 4 elements to axis -1 of x, 5 are needed"):
        mf.dilation2d(x, (1, 11), border="reflect")
    with pytest.raises(ShapeError, match=r"border='circular' can add at most 5"):
        mf.dilation2d(x, (1, 13), border="circular")
    assert mf.dilation2d(x, (1, 31), border="replicate").shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border": "zeros"}, "border must be one of neutral, reflect, replicate, circular, constant, got 'zeros'"),
        ({"merge": "mean"}, "merge must be 'max' or 'sum', got 'mean'"),
        ({"padding": "full"}, "padding must be 'same', 'valid' or integers"),
        ({"padding": -1}, "padding must be one integer >= 0 or 2 of them, got -1"),
        ({"padding": (1, 1, 1)}, "padding must be one integer >= 0 or 2"),
        ({"groups": 0}, "groups must be >= 1"),
        ({"stride": 0}, "stride must be one integer >= 1"),
        ({"stride": 1.5}, "stride must be one integer >= 1"),
        ({"dilation": (1, 0)}, "dilation must be one integer >= 1"),
    ],
)
def test_bad_options(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mf.dilation2d(torch.randn(1, 1, 5, 5), 3, **options)


@pytest.mark.parametrize("size", [0, -3, (3, 0), (3, 3, 3), 2.5])
def test_bad_window_sizes(size) -> None:
    with pytest.raises(ConfigError, match="window size must be one integer >= 1 or 2 of them"):
        mf.dilation2d(torch.randn(1, 1, 5, 5), size)


def test_operators_of_two_stages_take_no_stride() -> None:
    with pytest.raises(ConfigError, match="opening2d does not take stride"):
        mf.opening2d(torch.randn(1, 1, 5, 5), 3, stride=2)
