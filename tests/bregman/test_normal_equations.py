"""Sums for least squares: packed, reduced and solved; and methods on data that no least squares can cope with."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import bregman as B
from morphlightning.bregman.method import Method
from morphlightning.bregman.normal_equations import (
    JITTER,
    factor,
    from_triangle,
    full_precision,
    pack,
    solving_dtype,
    triangle,
    unpack,
)
from morphlightning.errors import NonFiniteError

DOUBLE = torch.float64


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_what_is_packed_is_unpacked(shapes: list[list[int]]):
    parts = [torch.randn(shape) for shape in shapes]
    packed = pack(parts)
    assert packed.ndim == 1
    for part, again in zip(parts, unpack(packed, [part.shape for part in parts]), strict=True):
        assert torch.equal(part, again)
    packed.zero_()
    assert all(part.numel() == 0 or part.any() for part in parts)  # a copy


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 785])
def test_triangles_hold_symmetric_matrices(size: int):
    a = torch.randn(2, size + 3, size)
    gram = a.mT @ a
    gram = (gram + gram.mT) / 2
    packed = triangle(gram)
    assert packed.shape == (2, size * (size + 1) // 2)
    assert torch.equal(from_triangle(packed), gram)


def test_solving_dtypes():
    assert (
        solving_dtype(torch.bfloat16) == solving_dtype(torch.float16) == solving_dtype(torch.float32) == torch.float32
    )
    assert solving_dtype(DOUBLE) == DOUBLE


def test_full_precision_turns_autocast_and_tf32_off_and_restores_them():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with full_precision(torch.device("cpu")):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(KeyError), full_precision(torch.device("cpu")):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_factor_is_that_of_gram_plus_ridge():
    a = torch.randn(3, 20, 6, dtype=DOUBLE)
    gram, ridge = a.mT @ a, 0.3
    kept, lower = gram.clone(), factor(gram, ridge, "a")
    assert torch.equal(gram, kept)
    torch.testing.assert_close(lower @ lower.mT, gram + ridge * torch.eye(6, dtype=DOUBLE), rtol=1e-12, atol=1e-12)


def test_the_jitter_is_of_the_size_of_rounding():
    a = torch.randn(1, 20, 6, dtype=DOUBLE)
    lower = factor(a.mT @ a, 0.0, "a")
    jitter = JITTER * torch.finfo(DOUBLE).eps * float((a.mT @ a).diagonal(dim1=1, dim2=2).mean())
    assert float((lower @ lower.mT - a.mT @ a).abs().max()) < 4 * jitter


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_matrices_are_solved_or_refused(dtype: torch.dtype, scale: float):
    refused: list[str] = []
    for seed in range(20):
        torch.manual_seed(seed)
        a = scale * torch.randn(1, 3, 12, dtype=dtype)  # of rank 3
        try:
            lower = factor(a.mT @ a, 0.0, "middle")
        except NonFiniteError as error:
            refused.append(str(error))
        else:
            assert lower.isfinite().all()
    expected = "layer middle has no solution: its Gram matrix plus ridge=0 is singular"
    assert all(expected in message for message in refused)
    assert len(refused) < 20  # the jitter helps at least sometimes


def test_matrices_without_a_solution_are_refused():
    with pytest.raises(NonFiniteError, match=r"layer 0\.1 has no solution.*singular to working precision. Raise ridge"):
        factor(torch.zeros(1, 3, 3), 0.0, "0.1")
    for bad in (math.nan, math.inf):
        gram = torch.eye(3)[None].clone()
        gram[0, 1, 1] = bad
        with pytest.raises(NonFiniteError, match=r"layer 0\.1 is not finite. Look for NaN or inf in the inputs"):
            factor(gram, 1.0, "0.1")


# -------------------------------------------------------------------------------------------- methods on difficult data
N = 20


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def convolutions() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(N, 6, generator=generator).to(dtype), torch.randn(N, 3, generator=generator).to(dtype)


METHODS: dict[str, Callable[[B.Chain, float], Method]] = {
    "badmm": lambda chain, ridge: B.Badmm(chain, B.SquaredError(), ridge=ridge),
    "badmm_mirror": lambda chain, ridge: B.Badmm(chain, B.SquaredError(), ridge=ridge, x_step="mirror", order="xWM"),
    "badmm_gradient": lambda chain, ridge: B.Badmm(chain, B.SquaredError(), ridge=ridge, w_step="gradient"),
    "full": lambda chain, ridge: B.MajorizeMinimize(chain, B.SquaredError(), ridge=ridge),
    "incremental": lambda chain, ridge: B.Incremental(chain, B.SquaredError(), N, ridge=ridge),
    "memoryless": lambda chain, ridge: B.Memoryless(chain, B.SquaredError(), N, ridge=ridge),
    "average": lambda chain, ridge: B.MovingAverage(chain, B.SquaredError(), N, ridge=ridge),
}
ALL = pytest.mark.parametrize("name", METHODS)
BOTH = pytest.mark.parametrize("make", [network, convolutions])


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@torch.no_grad()
def mean_square(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((module(x).double() - y.double()).square().mean())


@ALL
@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["input", "target"])
@pytest.mark.parametrize("way", ["whole", "pieces"])
def test_what_is_not_finite_leaves_the_weights_as_they_were(
    name: str, make: Callable[[], nn.Sequential], bad: float, where: str, way: str
):
    module = make()
    method, (x, y) = METHODS[name](B.Chain(module), 1.0), data()
    (x if where == "input" else y)[3, 1] = bad
    before, samples = parameters(module), method.start(x, y)
    if way == "pieces":
        method.piece(samples, x, y)
    step = method.update if way == "pieces" else lambda: method.iterate(samples, x, y)
    with pytest.raises(NonFiniteError, match="The weights are those before this step"):
        step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(module), strict=True))
    assert method.iteration == 0


@ALL
def test_what_becomes_infinite_later_leaves_the_weights_as_they_were(name: str):
    module = network()
    method, (x, y) = METHODS[name](B.Chain(module), 1.0), data()
    samples = method.start(x, y)
    for _ in range(3):
        method.iterate(samples, x, y)
    before = parameters(module)
    y[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        method.iterate(samples, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(module), strict=True))


@ALL
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_inputs_without_ridge_are_solved_or_refused(
    name: str, make: Callable[[], nn.Sequential], dtype: torch.dtype, value: float
):
    module = make().to(dtype)
    method, (x, y) = METHODS[name](B.Chain(module), 0.0), data(dtype)
    x = torch.full_like(x, value)
    samples, before = method.start(x, y), parameters(module)
    refusal = ""
    while not refusal and method.iteration < 5:
        before = parameters(module)
        try:
            method.iterate(samples, x, y)
        except NonFiniteError as error:
            refusal = str(error)
        assert all(parameter.isfinite().all() for parameter in parameters(module))
    if refusal:
        assert "singular to working precision" in refusal
        assert all(torch.equal(a, b) for a, b in zip(before, parameters(module), strict=True))


@ALL
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE])
def test_parameters_of_any_dtype_are_trained_in_it(name: str, make: Callable[[], nn.Sequential], dtype: torch.dtype):
    module = make().to(dtype)
    method, (x, y) = METHODS[name](B.Chain(module), 1.0), data(dtype)
    samples, start = method.start(x, y), mean_square(module, x, y)
    method.monitored = True
    for _ in range(40):
        method.iterate(samples, x, y)
    for parameter in module.parameters():
        assert parameter.dtype == dtype
        assert parameter.isfinite().all()
    for sample in samples.values():
        assert sample.dtype in (dtype, torch.bool)
    assert method.input_gram is None or method.input_gram.dtype == solving_dtype(dtype)
    assert all(figure.isfinite() for figure in method.figures.values())
    assert mean_square(module, x, y) < start


@ALL
def test_bfloat16_goes_where_float32_does(name: str):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        module, (x, y) = network(), data(torch.bfloat16)
        module = module.bfloat16().to(dtype)
        x, y = x.to(dtype), y.to(dtype)
        method = METHODS[name](B.Chain(module), 1.0)
        samples = method.start(x, y)
        for _ in range(20):
            method.iterate(samples, x, y)
        found.append(mean_square(module.float(), x.float(), y))
    assert found[1] == pytest.approx(found[0], rel=0.1)


@ALL
def test_inputs_of_another_dtype_are_taken_in_that_of_the_parameters(name: str):
    found = []
    for dtype in (torch.float32, DOUBLE):
        module, (x, y) = network(), data()
        method = METHODS[name](B.Chain(module), 1.0)
        x, y = x.to(dtype), y.to(dtype)
        samples = method.start(x, y)
        for _ in range(5):
            method.iterate(samples, x, y)
        found.append(parameters(module))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@ALL
def test_neither_inputs_nor_targets_are_written(name: str):
    module, (x, y) = network(), data()
    kept = x.clone(), y.clone()
    method = METHODS[name](B.Chain(module), 1.0)
    samples = method.start(x, y)
    for _ in range(4):
        method.iterate(samples, x, y)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


@ALL
def test_autocast_changes_no_dtype(name: str):
    module, (x, y) = network(), data()
    method = METHODS[name](B.Chain(module), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        samples = method.start(x, y)
        for _ in range(5):
            method.iterate(samples, x, y)
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in module.parameters())
    assert all(sample.dtype in (torch.float32, torch.bool) for sample in samples.values())
