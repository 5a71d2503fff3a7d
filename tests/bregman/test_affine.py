"""Affine layers of lifted training against the modules themselves and design matrices built column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning.bregman import affine as affine_module
from morphlightning.bregman.affine import Affine, Convolution, Dense, affine

DOUBLE = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True, scope="module")
def without_gradients() -> Iterator[None]:
    """As all methods run."""
    with torch.no_grad():
        yield


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution of any geometry and inputs for it."""
    groups = draw(st.integers(1, 3))
    each_in, each_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding: str | tuple[int, int] = draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if padding == "numbers":
        padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    if padding == "same":
        stride = (1, 1)
        kernel = tuple(size if (size - 1) * step % 2 == 0 else 3 for size, step in zip(kernel, dilation, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = nn.Conv2d(
        groups * each_in, groups * each_out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())
    ).double()
    height, width = draw(st.integers(5, 7)), draw(st.integers(5, 7))
    return module, torch.randn(draw(st.integers(1, 3)), groups * each_in, height, width, dtype=DOUBLE)


@st.composite
def denses(draw: st.DrawFn) -> tuple[nn.Linear, Tensor]:
    """A linear layer and inputs with or without further axes."""
    torch.manual_seed(draw(st.integers(0, 99)))
    module = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 5)), bias=draw(st.booleans())).double()
    further = draw(st.lists(st.integers(1, 3), max_size=2))
    return module, torch.randn(draw(st.integers(1, 4)), *further, module.in_features, dtype=DOUBLE)


GEOMETRIES = st.one_of(convolutions(), denses())


def linear_part(layer: Affine, x: Tensor) -> Tensor:
    """W x: what the layer makes of x, without its bias."""
    return layer(x) - layer(torch.zeros_like(x))


def brute_force(layer: Affine, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Gram and moment from an explicit design matrix: one run of the module for each unit weight."""
    groups, out, size = layer.shape
    kept, columns = layer.weights(), []
    for k in range(size):
        unit = torch.zeros(groups, out, size, dtype=DOUBLE)
        unit[:, :, k] = 1
        layer.assign(unit)
        u = layer.module(layer.reshaped(x))
        channels = 1 if isinstance(layer.module, nn.Conv2d) else -1
        columns.append(u.movedim(channels, 0).reshape(groups, out, -1))
    layer.assign(kept)
    design = torch.stack(columns, -1)  # (groups, out, rows, size), alike for all outputs of a group
    targets = t.movedim(1 if isinstance(layer.module, nn.Conv2d) else -1, 0).reshape(groups, out, -1)
    rows = design[:, 0]
    assert torch.equal(design, rows[:, None].expand_as(design))
    return rows.mT @ rows, targets @ rows


@given(GEOMETRIES)
@settings(max_examples=60, deadline=None)
def test_it_is_the_module_its_exact_adjoint_and_the_sums_of_its_design_matrix(case: tuple[nn.Module, Tensor]):
    module, x = case
    layer = affine("layer", module)
    u = layer(x)
    torch.testing.assert_close(u, module(x), rtol=0, atol=0)

    r = torch.randn_like(u)
    back = layer.adjoint(r, x)
    assert back.shape == x.shape
    left, right = (linear_part(layer, x) * r).sum(), (x * back).sum()
    torch.testing.assert_close(left, right, **EXACT)

    gram, moment = brute_force(layer, x, r)
    torch.testing.assert_close(layer.gram(x), gram, **EXACT)
    torch.testing.assert_close(layer.moment(x, r), moment, **EXACT)


@given(GEOMETRIES)
@settings(max_examples=40, deadline=None)
def test_weights_come_back_as_they_were_assigned(case: tuple[nn.Module, Tensor]):
    module, x = case
    layer = affine("layer", module)
    before, u = layer.weights(), layer(x)
    assert before.shape == layer.shape
    new = torch.randn_like(before)
    layer.assign(new)
    assert torch.equal(layer.weights(), new)
    gram, moment = layer.gram(x), layer.moment(x, layer(x))
    torch.testing.assert_close(moment, new @ gram, rtol=1e-10, atol=1e-10)  # t = u = a V^T
    layer.assign(before)
    assert torch.equal(layer(x), u)
    before.zero_()  # a copy
    assert torch.equal(layer(x), u)


@given(GEOMETRIES, st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_the_squared_norm_is_hardly_above_and_never_below_that_of_the_matrix(
    case: tuple[nn.Module, Tensor], scale: float
):
    module, x = case
    layer = affine("layer", module)
    layer.assign(scale * layer.weights())
    units = torch.eye(x[0].numel(), dtype=DOUBLE).view(-1, *x.shape[1:])
    exact = float(torch.linalg.matrix_norm(linear_part(layer, units).flatten(1), 2) ** 2)
    found = float(layer.squared_norm(x))
    assert exact * (1 - 1e-12) <= found <= exact * 1.06


@pytest.mark.parametrize("exponent", [-18, -8, 0, 8, 18])
@pytest.mark.parametrize("shape", [(50, 9), (9, 50), (1, 7), (30, 30)])
def test_the_squared_norm_of_a_flat_spectrum_is_above_by_its_bound_at_most(shape: tuple[int, int], exponent: int):
    module = nn.Linear(shape[1], shape[0])
    module.weight.data = torch.linalg.qr(torch.randn(max(shape), min(shape)))[0] * 10.0**exponent
    if shape[0] < shape[1]:
        module.weight.data = module.weight.data.mT.contiguous()
    found = float(affine("layer", module).squared_norm(torch.zeros(1, shape[1]))) / 10.0 ** (2 * exponent)
    assert 1 - 1e-5 <= found <= min(shape) ** (1 / 64) * (1 + 1e-5)


@pytest.mark.parametrize(
    "weight", [torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2, 2)]
)
def test_the_squared_norm_of_filters_that_sum_to_zero(weight: Tensor):
    dense = nn.Linear(2, 2)
    dense.weight.data = weight
    exact = float(torch.linalg.matrix_norm(weight, 2) ** 2)
    assert float(affine("layer", dense).squared_norm(torch.zeros(1, 2))) == pytest.approx(exact, rel=0.02)
    conv = nn.Conv2d(1, 1, 2, stride=2, bias=False)
    conv.weight.data = weight[None, None]
    exact = float(weight.square().sum())  # patches do not overlap
    assert float(affine("layer", conv).squared_norm(torch.zeros(1, 1, 4, 4))) == pytest.approx(exact, rel=0.06)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 3), nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 4, (1, 2), dilation=2, groups=4)],
    ids=["dense", "groups", "depthwise"],
)
def test_no_samples_give_zeros(module: nn.Linear | nn.Conv2d, bias: bool):
    if not bias:
        module.bias = None
    layer = affine("layer", module)
    shape = (0, 4) if isinstance(module, nn.Linear) else (0, 4, 5, 5)
    x = torch.zeros(shape)
    u = layer(x)
    assert len(u) == 0
    assert layer.adjoint(u, x).shape == x.shape
    groups, out, size = layer.shape
    assert torch.equal(layer.gram(x), torch.zeros(groups, size, size))
    assert torch.equal(layer.moment(x, u), torch.zeros(groups, out, size))
    assert float(layer.squared_norm(x)) > 0


@pytest.mark.parametrize(
    ("module", "reshapes", "shape"),
    [
        (nn.Linear(24, 3), [nn.Flatten()], (5, 2, 3, 4)),
        (nn.Linear(4, 3), [nn.Unflatten(1, (6, 4))], (5, 24)),
        (nn.Conv2d(2, 4, 3, padding=1, groups=2), [nn.Unflatten(1, (2, 3, 4))], (5, 24)),
        (nn.Conv2d(2, 4, 2), [nn.Flatten(), nn.Unflatten(1, (2, 4, 3))], (5, 3, 8)),
    ],
    ids=["flatten", "unflatten_dense", "unflatten_conv", "both"],
)
def test_reshapes_stand_before_the_layer(
    module: nn.Linear | nn.Conv2d, reshapes: Sequence[nn.Module], shape: tuple[int, ...]
):
    layer = affine("layer", module.double(), reshapes)
    x = torch.randn(shape, dtype=DOUBLE)
    u = layer(x)
    torch.testing.assert_close(u, nn.Sequential(*reshapes, module)(x), rtol=0, atol=0)
    r = torch.randn_like(u)
    back = layer.adjoint(r, x)
    assert back.shape == x.shape
    torch.testing.assert_close((linear_part(layer, x) * r).sum(), (x * back).sum(), **EXACT)
    gram, moment = brute_force(layer, x, r)
    torch.testing.assert_close(layer.gram(x), gram, **EXACT)
    torch.testing.assert_close(layer.moment(x, r), moment, **EXACT)
    units = torch.eye(x[0].numel(), dtype=DOUBLE).view(-1, *shape[1:])
    exact = float(torch.linalg.matrix_norm(linear_part(layer, units).flatten(1), 2) ** 2)
    assert exact * (1 - 1e-12) <= float(layer.squared_norm(x)) <= exact * 1.06
    empty = x[:0]
    assert layer.adjoint(layer(empty), empty).shape == empty.shape
    assert not layer.gram(empty).any()
    assert not layer.moment(empty, layer(empty)).any()


def test_few_patches_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch):
    layer = affine("layer", nn.Conv2d(2, 3, 3, padding=1).double())
    x = torch.randn(7, 2, 6, 5, dtype=DOUBLE)
    whole = layer.gram(x)
    for most in (1, 2 * 6 * 5 * 9 * 3):
        monkeypatch.setattr(affine_module, "UNFOLDED", most)
        torch.testing.assert_close(layer.gram(x), whole, **EXACT)


def test_rows_are_the_design_matrix():
    layer = affine("layer", nn.Linear(3, 2).double())
    x = torch.randn(4, 2, 3, dtype=DOUBLE)
    assert isinstance(layer, Dense)
    rows = layer.rows(x)
    torch.testing.assert_close(rows.mT @ rows, layer.gram(x)[0], **EXACT)
    torch.testing.assert_close(rows @ layer.weights()[0].mT, layer(x).flatten(0, 1), **EXACT)


def test_the_kinds_of_layers():
    assert isinstance(affine("a", nn.Linear(2, 2)), Dense)
    assert isinstance(affine("a", nn.Conv2d(2, 2, 2)), Convolution)


@pytest.mark.parametrize("kernel", [2, (3, 4)])
def test_same_padding_of_an_even_kernel_is_refused(kernel: int | tuple[int, int]):
    with pytest.raises(ValueError, match="even kernel"):
        affine("layer", nn.Conv2d(1, 1, kernel, padding="same"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_stay(dtype: torch.dtype):
    for module, x in ((nn.Linear(3, 2), torch.randn(4, 3)), (nn.Conv2d(3, 2, 2), torch.randn(4, 3, 4, 4))):
        layer, x = affine("layer", module.to(dtype)), x.to(dtype)
        u = layer(x)
        assert u.dtype == dtype
        assert layer.adjoint(u, x).dtype == dtype
        assert layer.weights().dtype == dtype
        layer.assign(torch.randn(layer.shape))
        assert module.weight.dtype == module.bias.dtype == dtype
        assert layer.squared_norm(x).dtype == torch.float32
