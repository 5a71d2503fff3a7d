"""The triton backend equals the eager one: under triton's interpreter, compiled without a device, and on a device.

Triton reads TRITON_INTERPRET when kernels are defined, and other tests of the same process need it unset. So this file
runs itself in a process of its own, in which the tests of the kernels see tensors on the CPU.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from morphlightning.ops import eager, gpu
from morphlightning.ops.geometry import BORDERS, Dense, Window

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ROOT = Path(__file__).parents[2]

kernels = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
about_infinities = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # numpy says that it made a NaN
on_device = about_infinities if INTERPRETED else pytest.mark.gpu


def example(kind, x_shape, w_shape, dtype=torch.float32):
    torch.manual_seed(0)
    x, w = torch.randn(x_shape), torch.randn(w_shape)
    if kind != "normal":
        x, w = (2 * x).round(), (2 * w).round()
    if kind in ("missing", "special"):
        w[torch.rand(w_shape) < 0.4] = -torch.inf
        w[0] = -torch.inf
    if kind == "special":
        chance = torch.rand(x_shape)
        x[chance < 0.06] = torch.inf
        x[chance > 0.94] = -torch.inf
        x[(chance > 0.5) & (chance < 0.52)] = torch.nan
    return x.to(DEVICE, dtype), w.to(DEVICE, dtype)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def check(x, w, geometry):
    """All functions but those about ties, against the eager backend."""
    same([gpu.value(x, w, geometry)], [eager.value(x, w, geometry)])
    y, arg, gap = expected = eager.indices(x, w, geometry, True)
    same(gpu.indices(x, w, geometry, True), expected)
    same(gpu.indices(x, w, geometry, False), (y, arg, gap.new_empty(0)))
    gy = torch.randn(arg.shape, device=DEVICE).to(gap.dtype).masked_fill(torch.rand(arg.shape, device=DEVICE) < 0.2, 0)
    for want in ((True, True), (True, False), (False, True), (False, False)):
        found = gpu.scatter(gy, arg, x.shape, w.shape, geometry, *want)
        close(found, eager.scatter(gy, arg, x.shape, w.shape, geometry, *want))
        if all(want):
            both = found
        same(found, [g if wanted else g.new_empty(0) for g, wanted in zip(both, want, strict=True)])
    same([gpu.touches(gy, arg, w.shape, geometry)], [eager.touches(gy, arg, w.shape, geometry)])


def check_ties(x, w, geometry, eps):
    """All passes over active candidates, and projections, against the eager backend."""
    _, arg, gap = eager.indices(x, w, geometry, True)
    call = (-x if geometry.dual else x, w, arg, gap, replace(geometry, dual=False))
    seen, expected = gpu.active(*call, eps), eager.active(*call, eps)
    same([seen.size], [expected.size])
    u, more = torch.randn(2, *arg.flatten(1).shape, device=DEVICE).to(gap.dtype)
    values = torch.randn(len(x), seen.cells, device=DEVICE).to(gap.dtype).mul(2).round()  # with equal ones
    close([seen.to_cells(u), seen.to_taps(more)], [expected.to_cells(u), expected.to_taps(more)])
    same(*([graph.dilate(values), graph.erode(u), graph.select(values)] for graph in (seen, expected)))
    for count in (False, True):
        moved = (u.masked_fill(u.abs() < 0.3, 0).view_as(arg), *call, 0.8, count)
        close(gpu.project(*moved), eager.project(*moved))


# ------------------------------------------------------------------------------------------------------- dense
KINDS = ("normal", "ties", "missing", "special")


@kernels
@on_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", [Dense(), Dense(2, dual=True)], ids=str)
@pytest.mark.parametrize(("samples", "outs", "fan_in"), [(5, 6, 14), (1, 3, 40), (2, 1, 1)])
def test_dense(kind, geometry, samples, outs, fan_in):
    check(*example(kind, (samples, geometry.groups * fan_in), (geometry.groups * outs, fan_in)), geometry)


@kernels
@on_device
@pytest.mark.parametrize("processors", [1, 64])
def test_dense_in_several_tiles(processors, monkeypatch):
    from morphlightning.ops.gpu import dense

    monkeypatch.setattr(dense, "processors", lambda device: processors)
    check(*example("special", (70, 35), (34, 35)), Dense())


@kernels
@on_device
@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("processors", [2, 64])
def test_dense_split_among_programs(kind, processors, monkeypatch):
    from morphlightning.ops.gpu import dense

    monkeypatch.setattr(dense, "processors", lambda device: processors)
    assert dense._span(200, 1, torch.device(DEVICE)) < 200
    check(*example(kind, (3, 400), (8, 200)), Dense(2))


@kernels
@on_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "special"])
def test_dense_dtypes(dtype, kind):
    if INTERPRETED and dtype == torch.bfloat16 and kind == "normal":
        pytest.skip("the interpreter cuts bfloat16 where devices round it")
    x, w = example(kind, (6, 36), (4, 36), dtype)
    check(x, w, Dense(dual=True))
    check(x, w.to(torch.promote_types(dtype, torch.float32)), Dense())


@kernels
@on_device
def test_dense_strides():
    x, w = example("ties", (20, 18), (9, 20))
    check(x.t(), w, Dense())
    check(x[:, :9], w.t()[:, ::1], Dense())
    check(x[:, ::2], w[:, :9], Dense())
    check(x[:1].expand(3, -1), w[:, :18], Dense())


@kernels
@on_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", [Dense(), Dense(2, dual=True)], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_dense_ties(kind, geometry, eps):
    check_ties(*example(kind, (5, geometry.groups * 19), (geometry.groups * 7, 19)), geometry, eps)


@kernels
@on_device
def test_dense_ties_in_several_tiles():
    check_ties(*example("missing", (70, 2 * 67), (2 * 35, 67)), Dense(2), 1.0)


@kernels
@on_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dense_ties_dtypes_and_strides(dtype):
    x, w = example("ties", (36, 6), (8, 36), dtype)
    check_ties(x.t(), w, Dense(), 1.0)
    check_ties(x.t()[:, ::2], w[::2, :18].float(), Dense(), 1.0)


@kernels
@on_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_passes_keep_the_dtype_of_messages(dtype):
    x, w = example("ties", (3, 20), (4, 20))
    _, arg, gap = eager.indices(x, w, Dense(), True)
    graph, expected = (backend.active(x, w, arg, gap, Dense(), 1.0) for backend in (gpu, eager))
    u, h = torch.randn(3, 4, device=DEVICE).to(dtype), torch.randn(3, 20, device=DEVICE).to(dtype)
    same([graph.dilate(h), graph.erode(u)], [expected.dilate(h), expected.erode(u)])
    assert graph.to_cells(u).dtype == graph.to_taps(u).dtype == dtype


@kernels
@on_device
def test_nan_wins_and_is_near_nobody():
    x, w = example("ties", (2, 5), (3, 5))
    x[0, [1, 3]] = torch.nan
    y, arg, gap = gpu.indices(x, w, Dense(), True)
    assert y[0].isnan().all()
    assert gap[0].isnan().all()
    assert (arg[0] == 1).all()
    assert (gpu.active(x, w, arg, gap, Dense(), 1.0).size[0] == 0).all()


@kernels
@on_device
def test_empty():
    for geometry, x, w in ((Dense(), (0, 3), (2, 3)), (Window((1,), (1,), (0,), (0,)), (0, 1, 4), (1, 1, 3))):
        check(torch.randn(x, device=DEVICE), torch.randn(w, device=DEVICE), geometry)


@kernels
@on_device
@pytest.mark.parametrize(("shape", "width"), [((3, 2, 700), 5), ((1, 3, 150), 70), ((300, 40, 1), 65), ((1, 1, 1), 1)])
def test_sums_of_many_messages(shape, width):
    from morphlightning.ops.gpu import sums

    torch.manual_seed(0)
    messages = torch.randn(shape, device=DEVICE, dtype=torch.float64)
    winners = torch.randint(-1, width, shape, device=DEVICE, dtype=torch.int32)
    bins = torch.arange(width, device=DEVICE)
    expected = ((winners[..., None] == bins) * messages[..., None]).sum((0, 2))
    torch.testing.assert_close(sums.by_winner(messages, winners, width), expected)


# ------------------------------------------------------------------------------------------------------ window
@kernels
@on_device
@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dual", [False, True])
def test_window(kind, border, dual):
    geometry = Window((2, 1), (1, 2), (2, 1), (1, 3), 2, border, 1.0, dual)
    check(*example(kind, (2, 4, 6, 5), (6, 2, 3, 2)), geometry)


@kernels
@on_device
@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize(
    ("geometry", "x", "w"),
    [
        (Window((3,), (2,), (4,), (1,)), (3, 2, 17), (5, 2, 4)),
        (Window((1, 1), (1, 1), (1, 1), (1, 1), 3), (2, 3, 5, 6), (3, 1, 3, 3)),
        (Window((1, 1), (1, 1), (0, 0), (0, 0), 2, flat=True), (2, 2, 4, 5), (2, 1, 2, 2)),
        (Window((1, 2, 1), (2, 1, 1), (1, 0, 1), (2, 1, 0), 1, "constant", -0.5), (1, 2, 4, 3, 5), (3, 2, 2, 2, 2)),
        (Window((1, 1), (1, 1), (1, 1), (1, 1)), (1, 3, 7, 7), (33, 3, 3, 3)),
    ],
    ids=["1-D", "depthwise", "flat", "3-D", "full"],
)
def test_window_shapes(kind, geometry, x, w):
    x, w = example(kind, x, w)
    check(x, torch.zeros_like(w) if geometry.flat else w, geometry)


@kernels
@on_device
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_window_dtypes_and_strides(dtype):
    x, w = example("special", (2, 4, 5, 5), (4, 4, 2, 2), dtype)
    geometry = Window((1, 1), (1, 1), (1, 0), (0, 1), border="constant", fill=0.5)
    check(x.to(memory_format=torch.channels_last), w, geometry)
    check(x.transpose(2, 3), w[::2], geometry)


@kernels
@on_device
def test_window_ties():
    check_ties(*example("ties", (2, 2, 6), (3, 2, 3)), Window((1,), (1,), (1,), (1,)), 1.0)


# ------------------------------------------------------------------------------------------------------ spline
def spline_reference(x, values, knots):
    """One row for each channel."""
    x, values, knots = x.double(), values.double(), knots.double()
    seen = x.detach().nan_to_num(-torch.inf)
    piece = (seen[..., None] >= knots[:, None]).sum(-1).sub(1).clamp(0, knots.shape[1] - 2)
    left, right = values.gather(1, piece), values.gather(1, piece + 1)
    start, end = knots.gather(1, piece), knots.gather(1, piece + 1)
    return left + (right - left) * (x - start) / (end - start)


@kernels
@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("count", "kind"), [(2, "own"), (9, "uniform"), (9, "free"), (9, "own"), (70, "free")])
def test_spline(dtype, count, kind, monkeypatch):
    from morphlightning.ops import splines
    from morphlightning.ops.gpu import spline

    monkeypatch.setattr(spline, "CHUNK", 64)
    torch.manual_seed(0)
    x = (2 * torch.randn(2, 3, 150)).to(DEVICE, dtype)
    values = torch.randn(3, count).to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
    low, spacing = -1.5, 3 / (count - 1)
    places = (low + spacing * torch.arange(count, device=DEVICE, dtype=torch.float64)).repeat(3, 1)
    if kind != "uniform":
        places += spacing * 0.8 * torch.rand(1 if kind == "free" else 3, count, device=DEVICE, dtype=torch.float64)
    knots = {"uniform": (low, spacing), "free": places[0], "own": places}[kind]

    rows, c, t = (one.requires_grad_() for one in (x.double().transpose(0, 1).flatten(1), values.double(), places))
    expected = spline_reference(rows, c, t)
    gy = torch.randn_like(x)
    g = gy.double().transpose(0, 1).flatten(1)
    slopes, *_ = torch.autograd.grad(expected, rows, torch.ones_like(g), retain_graph=True)
    gradients = torch.autograd.grad(expected, (rows, c, t), g)
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.05}[dtype]
    gx, sums = spline.backward(gy, x, values, knots, True)
    found = spline.value(x, values, knots), spline.slope(x, values, knots), gx
    assert [t.dtype for t in (*found, sums)] == [dtype, dtype, dtype, values.dtype]
    for one, other in zip(found, (expected, slopes, gradients[0]), strict=True):
        torch.testing.assert_close(one.double().transpose(0, 1).flatten(1), other, rtol=tolerance, atol=tolerance)
    steps = c.diff() / t.diff()
    left, right = (sums[0] - sums[1]).double(), sums[1].double()
    for one, other in (
        (splines._at_ends(left, right), gradients[1]),
        (splines._at_ends(left, right, -steps), gradients[2]),
    ):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)
    same((gx, sums), spline.backward(gy, x, values, knots, True))
    assert torch.equal(spline.value(x, values, knots, x), found[0])
    assert torch.equal(x, found[0])


@kernels
@on_device
def test_spline_of_nan_and_of_nothing():
    from morphlightning.ops.gpu import spline

    values = torch.randn(1, 5, device=DEVICE)
    x = torch.tensor([[[torch.nan, 0.3]]], device=DEVICE)
    for knots in ((-1, 0.5), torch.arange(5, device=DEVICE)):
        for y in (spline.value(x, values, knots), spline.slope(x, values, knots)):
            assert y.isnan().tolist() == [[[True, False]]]
    nothing = torch.empty(0, 1, 4, device=DEVICE)
    assert spline.value(nothing, values, (-1, 0.5)).shape == (0, 1, 4)
    assert not spline.backward(nothing, nothing, values, (-1, 0.5), True)[1].any()


# ------------------------------------------------------------------------------------------------- without a GPU
def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@kernels
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter():
    report = run("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, TRITON_INTERPRET="1")
    assert "passed" in report
    assert "failed" not in report


COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

class Device:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

run, compiled = jit.JITFunction.run, set()

def compile_only(kernel, *args, warmup, **options):
    assert "cubin" in run(kernel, *args, warmup=True, **options).asm
    compiled.add(kernel.fn.__qualname__ + " of " + kernel.fn.__module__.rsplit(".", 1)[-1])

driver.set_active(Device())
jit.JITFunction.run = compile_only

from morphlightning.ops import gpu
from morphlightning.ops.geometry import Dense, Window
from morphlightning.ops.gpu import spline

def every(x, w, geometry):
    gpu.value(x, w, geometry)
    for gap in (False, True):
        y, arg, gaps = gpu.indices(x, w, geometry, gap)
    gpu.scatter(y, arg, x.shape, w.shape, geometry)
    if isinstance(geometry, Dense):
        graph = gpu.active(x, w, arg.zero_(), gaps, geometry, 0.1)
        graph.size, graph.to_cells(gaps), graph.to_taps(gaps), graph.dilate(gaps.new_zeros(x.shape))
        graph.erode(gaps), graph.select(gaps.new_zeros(x.shape))
        for count in (False, True):
            gpu.project(gaps, x, w, arg, gaps, geometry, 0.1, count)

for dtype in (torch.float32, torch.float64, torch.bfloat16):
    every(torch.zeros(64, 160, dtype=dtype), torch.zeros(64, 80, dtype=dtype), Dense(2, True))
    every(torch.zeros(1, 7, dtype=dtype), torch.zeros(1, 7, dtype=dtype), Dense())
    for border in ("neutral", "constant", "reflect"):
        geometry = Window((1, 2), (1, 1), (1, 1), (1, 1), 1, border)
        every(torch.zeros(2, 9, 8, 8, dtype=dtype), torch.zeros(40, 9, 3, 3, dtype=dtype), geometry)
    x, values = torch.zeros(2, 2, 50, dtype=dtype), torch.zeros(2, 9)
    for knots in ((-1.0, 0.25), values[0], values):
        spline.slope(x, values, knots)
        spline.backward(spline.value(x, values, knots), x, values, knots, True)
print(len(compiled), sorted(compiled))
"""


@kernels
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
def test_every_kernel_compiles_for_hopper(tmp_path):
    assert run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path)).startswith("11 ")


def test_triton_is_imported_with_the_first_kernel():
    code = "import sys, morphlightning.ops.gpu as gpu; gpu.unavailable(); sys.exit('triton' in sys.modules)"
    run("-c", code)


def test_reasons_why_it_is_unavailable(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "CUDA" in gpu.unavailable()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not gpu.unavailable()
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert "triton is not installed" in gpu.unavailable()


@kernels
@on_device
@about_infinities
def test_spline_of_infinity_on_a_level_end():
    from morphlightning.ops.gpu import spline

    x = torch.tensor([[[torch.inf, -torch.inf, torch.nan, 0.5]]], device=DEVICE)
    values = torch.tensor([[2.0, 2.0, 3.0, 3.0]], device=DEVICE)
    y = spline.value(x, values, (-1.0, 2 / 3))
    gx, sums = spline.backward(torch.ones_like(x[..., :2]), x[..., :2], values, (-1.0, 2 / 3), True)
    assert y[0, 0, :2].tolist() == [3.0, 2.0]
    assert y[0, 0, 2].isnan()
    assert gx.tolist() == [[[0.0, 0.0]]]
    assert sums.isfinite().all()
