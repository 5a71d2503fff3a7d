"""torch.compile, torch.func, opcheck: the operators as torch sees them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

import morphlightning.functional as mf
from morphlightning import backends
from morphlightning.ops import dispatch, geodesic, soft
from morphlightning.ops.geometry import DENSE, Window, parse
from morphlightning.pipeline import Pipeline

WINDOW = Window((1, 2), (1, 1), (1, 0), (1, 1), 2, "circular")


def policy_key(derivative: str) -> str:
    return Pipeline.parse(derivative).policy.key


@pytest.mark.parametrize("derivative", ["first", "bouligand"])
def test_compiled_functions_equal_eager_ones(derivative: str) -> None:
    def run(x: Tensor, w: Tensor, image: Tensor, b: Tensor) -> Tensor:
        dense = mf.closing(x, w, derivative=derivative)
        windowed = mf.opening2d(image, b, derivative=derivative)
        rebuilt = mf.reconstruction_by_dilation2d(windowed, image)
        return dense.sum() + (rebuilt * image).sum() + mf.soft_erosion(x.t(), w.t(), 3.0).sum()

    arguments = [torch.randn(s, requires_grad=True) for s in ((5, 4), (5, 4), (2, 3, 6, 5), (3, 3, 2))]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), run(*arguments))
    seen = torch.autograd.grad(compiled(*arguments), arguments)
    for a, b in zip(seen, torch.autograd.grad(run(*arguments), arguments), strict=True):
        torch.testing.assert_close(a, b)


def test_dynamic_batches() -> None:
    w, b = torch.randn(3, 4), torch.randn(2, 3, 3)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(lambda x, f: (mf.dilation(x, w), mf.dilation2d(f, b)), fullgraph=True, backend=backend)
    for n in (2, 3, 7):
        x, f = torch.randn(n, 4, requires_grad=True), torch.randn(n, 2, 5, 4, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(f, 0)
        y, z = compiled(x, f)
        assert torch.equal(y, mf.dilation(x, w))
        assert torch.equal(z, mf.dilation2d(f, b))
        (y.sum() + z.sum()).backward()
        assert x.grad.sum() == 3 * n
    assert len(graphs) == 1


@pytest.mark.parametrize("derivative", ["first", "uniform", "bouligand"])
def test_vmap_grad_and_jacobians(derivative: str) -> None:
    x, w = torch.randn(4, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return mf.erosion(x, w, derivative=derivative).square().sum()

    weight = w.clone().requires_grad_()
    one_by_one = torch.stack([torch.autograd.grad(loss(weight, sample), weight)[0] for sample in x])
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    torch.testing.assert_close(per_sample, one_by_one)
    jacobian = torch.func.jacrev(lambda x: mf.dilation(x, w, derivative=derivative))(x[0])
    assert torch.equal(jacobian, torch.autograd.functional.jacobian(lambda x: mf.dilation(x, w), x[0]))
    images, b = torch.randn(3, 2, 5, 4), torch.randn(2, 3, 3)
    torch.testing.assert_close(
        torch.func.vmap(lambda f: mf.dilation2d(f, b, derivative=derivative))(images), mf.dilation2d(images, b)
    )


def test_vmap_of_reconstruction_and_soft_operators() -> None:
    seeds, masks, w = torch.randn(3, 1, 5, 4), torch.randn(3, 1, 5, 4), torch.randn(2, 4)
    torch.testing.assert_close(
        torch.func.vmap(mf.reconstruction_by_dilation2d)(seeds, masks), mf.reconstruction_by_dilation2d(seeds, masks)
    )
    torch.testing.assert_close(torch.func.vmap(lambda x: mf.soft_dilation(x, w))(seeds), mf.soft_dilation(seeds, w))
    torch.testing.assert_close(
        torch.func.vmap(lambda f: mf.soft_erosion2d(f, 3, 2.0))(seeds), mf.soft_erosion2d(seeds, 3, 2.0)
    )


def test_gradients_of_single_samples_through_soft_operators() -> None:
    def loss(w: Tensor, f: Tensor) -> Tensor:
        return mf.soft_dilation2d(f, w, 2.0).square().sum()

    images, w = torch.randn(3, 2, 5, 4), torch.randn(4, 2, 3, 3)
    weight = w.clone().requires_grad_()
    one_by_one = torch.stack([torch.autograd.grad(loss(weight, image), weight)[0] for image in images])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, images), one_by_one)


def test_a_changed_temperature_compiles_nothing_anew() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def run(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
        return mf.soft_dilation(x, w, beta).sum() + mf.soft_erosion2d(x[None], w[:2], beta, border="reflect").sum()

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    for beta in (0.5, 3.0, 1e4):
        heat = torch.tensor(beta)
        torch.testing.assert_close(compiled(x, w, heat), run(x, w, heat))
        seen, right = (torch.autograd.grad(f(x, w, heat), (x, w)) for f in (compiled, run))
        torch.testing.assert_close(seen, right)
    assert len(graphs) == 1


def call(x: Tensor, w: Tensor, where) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch._indices(x, w, where.key, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "where"), [((3, 5), (4, 5), DENSE), ((2, 4, 5, 6), (4, 2, 3, 2), WINDOW)]
)
def test_opcheck(x_shape: tuple[int, ...], w_shape: tuple[int, ...], where, dtype: torch.dtype) -> None:
    tests = ("test_schema", "test_faketensor")
    x, w = torch.randn(x_shape).to(dtype), torch.randn(w_shape).to(dtype)
    turned = x.transpose(1, -1).contiguous().transpose(1, -1)
    for a in (x, turned):
        torch.library.opcheck(dispatch._value, (a, w, where.key), test_utils=tests)
        for gap in (False, True):
            torch.library.opcheck(dispatch._indices, (a, w, where.key, gap), test_utils=tests)
    y, arg, gap = call(x, w, where)
    gy = torch.randn(y.shape)
    shapes = list(x.shape), list(w.shape)
    torch.library.opcheck(dispatch._scatter, (gy, arg, *shapes, where.key, True, True), test_utils=tests)
    torch.library.opcheck(dispatch._touches, (gy, arg, shapes[1], where.key), test_utils=tests)
    torch.library.opcheck(dispatch._cells, (arg, *shapes, where.key), test_utils=tests)
    torch.library.opcheck(dispatch._gather, (x.float(), w.float(), arg, where.key), test_utils=tests)
    for derivative in ("uniform", "bouligand"):
        arguments = (gy, turned, w, arg, gap, where.key, policy_key(derivative), True, False, True)
        torch.library.opcheck(dispatch._route, arguments, test_utils=tests)


def test_opcheck_of_reconstruction() -> None:
    tests = ("test_schema", "test_faketensor")
    seeds = torch.randn(2, 1, 5, 4).transpose(2, 3)
    footprint = torch.ones(3, 3, dtype=torch.bool)
    torch.library.opcheck(geodesic._reconstruct, (seeds, seeds + 1, footprint, True), test_utils=tests)


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "where"),
    [((3, 5), (4, 5), DENSE), ((2, 4, 7, 6), (4, 2, 3, 2), Window((1, 2), (1, 1), (0, 0), (0, 0), 2))],
)
@pytest.mark.parametrize("beta", [2.0, 1e4])
def test_opcheck_of_soft_operators(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], where, dtype: torch.dtype, precision: str, beta: float
) -> None:
    tests = ("test_schema", "test_faketensor")
    x, w = torch.randn(x_shape).to(dtype), torch.randn(w_shape).to(dtype)
    x, heat = x.transpose(1, -1).contiguous().transpose(1, -1), torch.tensor(beta)
    torch.library.opcheck(soft._forward, (x, w, heat, where.key, precision), test_utils=tests)
    y, *kept = soft._forward(x, w, heat, where.key, precision)
    given = (torch.randn_like(y), x, w, heat, *kept, where.key)
    for want in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(soft._backward, (*given, *want), test_utils=tests)
    torch.library.opcheck(soft._second, (torch.randn_like(x), torch.randn_like(w), *given), test_utils=tests)


@pytest.mark.parametrize("where", [DENSE, WINDOW, Window((2,), (3,), (0,), (4,), 1, "constant", -0.5)])
def test_a_geometry_is_its_key(where) -> None:
    assert parse(where.key) == where


def test_backends() -> None:
    assert backends.available()["eager"] == "available"


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 2)])
@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (mf.erosion, ((2, 5), (4, 5))),
        (lambda f, b: mf.dilation2d(f, b, groups=2, border="reflect"), ((2, 4, 6, 5), (6, 2, 3, 3))),
    ],
)
def test_vmap_over_inputs_and_weights(run, shapes, in_dims) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [
        torch.randint(-2, 3, s if d is None else (*s[:d], 3, *s[d:]), generator=generator).double()
        for s, d in zip(shapes, in_dims, strict=True)
    ]

    def value_and_gradients(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y, pull = torch.func.vjp(run, x, w)
        return y, *pull(torch.arange(y.numel(), dtype=y.dtype).view_as(y))

    seen = torch.func.vmap(value_and_gradients, in_dims=in_dims)(*arguments)
    for i in range(3):
        one = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        for a, b in zip(seen, value_and_gradients(*one), strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_operators_in_the_dtype_of_their_input(dtype: torch.dtype) -> None:
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    expected = mf.dilation(x, w)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(mf.dilation(x, w), expected)
        hidden = torch.nn.functional.linear(x, torch.eye(6))
        y = mf.dilation(hidden, w)
    assert hidden.dtype == y.dtype == dtype
    y.float().sum().backward()
    assert (x.grad.dtype, w.grad.dtype) == (torch.float32, torch.float32)
    assert torch.equal(mf.dilation(hidden.float(), w).to(dtype), y)


@pytest.mark.parametrize(
    "run",
    [
        mf.dilation,
        mf.erosion,
        lambda x, w: mf.soft_dilation(x, w, 2.0),
        lambda x, w: mf.linear_spline(x, w, (-2.0, 2.0)),
    ],
    ids=["dilation", "erosion", "soft dilation", "spline"],
)
def test_autograd_outside_of_a_vmap_sees_through_it(run) -> None:
    """As for a stack of networks that is trained: inside vmap no tensor says that it requires a gradient."""
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stack = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = torch.func.vmap(run, in_dims=(None, 0))(x, stack)
    one_by_one = torch.stack([run(x, w) for w in stack])
    torch.testing.assert_close(y, one_by_one)
    (seen,) = torch.autograd.grad(y.square().sum(), stack)
    (expected,) = torch.autograd.grad(one_by_one.square().sum(), stack)
    torch.testing.assert_close(seen, expected)
