"""The kernels for processors against the eager backend, which specifies them bit for bit."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import backends
from morphlightning.interfaces import ActiveGraph
from morphlightning.ops import eager
from morphlightning.ops.geometry import Dense, Geometry, Window

cpu = pytest.importorskip("morphlightning.ops.cpu", reason="numba is missing")

DTYPES = (torch.float32, torch.float64)
SPECIAL = (math.nan, math.inf, -math.inf, 3e38)


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, where NaN equals NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def check(x: Tensor, w: Tensor, where: Geometry) -> None:
    """All functions of the protocol."""
    assert equal(cpu.value(x, w, where), eager.value(x, w, where))
    for gap in (False, True):
        for seen, expected in zip(cpu.indices(x, w, where, gap), eager.indices(x, w, where, gap), strict=True):
            assert equal(seen, expected)
    y, arg, gaps = eager.indices(x, w, where, True)
    gy = torch.randn(y.shape, dtype=gaps.dtype)
    gy[torch.rand(y.shape) < 0.2] = 0
    close(cpu.scatter(gy, arg, x.shape, w.shape, where), eager.scatter(gy, arg, x.shape, w.shape, where))
    for want in ((True, False), (False, True)):
        close(
            cpu.scatter(gy, arg, x.shape, w.shape, where, *want), eager.scatter(gy, arg, x.shape, w.shape, where, *want)
        )
    assert torch.equal(cpu.touches(gy, arg, w.shape, where), eager.touches(gy, arg, w.shape, where))
    for eps in (0.0, 1.0, math.inf):
        call = (-x if where.dual else x, w, arg, gaps, plain(where), eps)
        check_graphs(eager.active(*call), cpu.active(*call))
    for tau in (0.1, 3.0):
        inner = (-x if where.dual else x).clamp_max(100.0)  # a step from an infinite score has no size
        _, arg, gaps = eager.indices(inner, w, plain(where), True)
        close(*(backend.project(gy, inner, w, arg, gaps, plain(where), tau, True) for backend in (cpu, eager)))


def plain(where: Geometry) -> Geometry:
    return replace(where, dual=False)


CLOSE = {torch.float32: {"rtol": 1e-3, "atol": 1e-3}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}  # sums of a thousand


def check_graphs(expected: ActiveGraph, seen: ActiveGraph) -> None:
    """All passes over the active candidates."""
    assert torch.equal(seen.size, expected.size)
    assert seen.tied == expected.tied
    dtype = expected.call.gap.dtype
    rows, cells = (torch.randn(len(expected.size), n, dtype=dtype) for n in (expected.units, expected.cells))
    names = ("to_cells", "to_taps", "to_taps_by_sign", "erode")
    for name, values in (*((name, rows) for name in names), ("dilate", cells)):
        torch.testing.assert_close(getattr(seen, name)(values), getattr(expected, name)(values), **CLOSE[dtype])
    whole = rows.mul(4).round()  # sums without rounding, so that equal ones stay equal
    torch.testing.assert_close(seen.to_cells_by_sign(whole), expected.to_cells_by_sign(whole))
    values = cells.round()  # the first of equal ones
    assert torch.equal(seen.select(values), expected.select(values))
    torch.testing.assert_close(seen.deliver(rows, seen.select(values)), expected.deliver(rows, seen.select(values)))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "where"),
    [((20, 30), (9, 30), Dense()), ((9, 4, 6, 5), (6, 2, 3, 3), Window((1, 1), (1, 1), (1, 1), (1, 1), 2))],
)
def test_where_few_samples_have_a_tie(x_shape: tuple[int, ...], w_shape: tuple[int, ...], where: Geometry) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(x_shape, dtype=torch.float64), torch.randn(w_shape, dtype=torch.float64).round()
    x[1:4] = x[1:4].round()
    _, arg, gap = eager.indices(x, w, where, True)
    seen, expected = (backend.active(x, w, arg, gap, where, 0.0) for backend in (cpu, eager))
    check_graphs(expected, seen)
    u, default = torch.randint(-3, 4, seen.size.shape).double(), torch.randn(len(x), seen.cells, dtype=torch.float64)
    torch.testing.assert_close(seen.steepest(u, default), expected.steepest(u, default))


def close(seen: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b)


def numbers(generator: random.Random, shape: tuple[int, ...], dtype: torch.dtype, special: bool) -> Tensor:
    """Integers, so that many tie, or reals; some of them special."""
    values = torch.randn(shape, dtype=dtype) * 2
    values = values.round() if generator.random() < 0.6 else values
    if generator.random() < 0.3:
        values[torch.rand(shape) < 0.3] = -math.inf
    if special and values.numel():
        values.view(-1)[generator.randrange(values.numel())] = generator.choice(SPECIAL)
    return values


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_dense_kernels_equal_eager(seed: int) -> None:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    groups, dtype = generator.choice((1, 1, 3)), generator.choice(DTYPES)
    # all tiles, the running index and two levels, few samples and many, fan-ins beside multiples of a vector
    samples, outs = generator.choice((0, 1, 3, 15, 16, 37)), generator.choice((1, 7, 16, 33, 65))
    taps = generator.choice((1, 5, 31, 32, 33, 100, 255, 256, 300))
    special = generator.random() < 0.4
    x = numbers(generator, (samples, groups * taps), dtype, special)
    w = numbers(generator, (groups * outs, taps), dtype, special)
    if special:  # sums of infinities of both signs have no defined gradient
        where = Dense(groups, generator.random() < 0.5)
        assert equal(cpu.value(x, w, where), eager.value(x, w, where))
        for seen, expected in zip(cpu.indices(x, w, where, True), eager.indices(x, w, where, True), strict=True):
            assert equal(seen, expected)
    else:
        check(x, w, Dense(groups, generator.random() < 0.5))


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_window_kernels_equal_eager(seed: int) -> None:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    rank, groups = generator.choice((1, 2, 2, 3)), generator.choice((1, 1, 2, 3))
    space = tuple(generator.randint(3, 8 if rank == 3 else 20) for _ in range(rank))
    size = tuple(generator.randint(1, 3) for _ in range(rank))
    stride, spacing = (tuple(generator.choice((1, 1, 2, 3)) for _ in range(rank)) for _ in range(2))
    before, after = (tuple(generator.randint(0, 2) for _ in range(rank)) for _ in range(2))
    reach = [(k - 1) * d + 1 for k, d in zip(size, spacing, strict=True)]
    if any(r > n + b + a for r, n, b, a in zip(reach, space, before, after, strict=True)):
        return
    border = generator.choice(("neutral", "reflect", "replicate", "circular", "constant"))
    where = Window(stride, spacing, before, after, groups, border, 0.5, generator.random() < 0.5)
    channels, outs, dtype = generator.choice((1, 2)), generator.choice((1, 2, 4, 5)), generator.choice(DTYPES)
    special = generator.random() < 0.2
    x = numbers(generator, (generator.randint(1, 3), groups * channels, *space), dtype, special)
    w = numbers(generator, (groups * outs, channels, *size), dtype, special)
    if special:
        assert equal(cpu.value(x, w, where), eager.value(x, w, where))
        for seen, expected in zip(cpu.indices(x, w, where, True), eager.indices(x, w, where, True), strict=True):
            assert equal(seen, expected)
        gy = torch.ones(where.output_shape(x.shape, w.shape), dtype=dtype)
        arg = eager.indices(x, w, where, False)[1]
        close(cpu.scatter(gy, arg, x.shape, w.shape, where), eager.scatter(gy, arg, x.shape, w.shape, where))
    else:
        check(x, w, where)


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_flat_kernels_equal_the_general_ones(seed: int) -> None:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    rank, channels = generator.choice((1, 2, 2, 3)), generator.choice((1, 3))
    space = tuple(generator.randint(3, 8 if rank == 3 else 30) for _ in range(rank))
    size = tuple(generator.randint(1, 6) for _ in range(rank))
    stride, spacing = (tuple(generator.choice((1, 1, 2, 3)) for _ in range(rank)) for _ in range(2))
    before, after = (tuple(generator.randint(0, 4) for _ in range(rank)) for _ in range(2))
    reach = [(k - 1) * d + 1 for k, d in zip(size, spacing, strict=True)]
    if any(r > n + b + a for r, n, b, a in zip(reach, space, before, after, strict=True)):
        return
    border = generator.choice(("neutral", "neutral", "constant"))
    where = Window(stride, spacing, before, after, channels, border, 0.5, generator.random() < 0.5, True)
    x = numbers(generator, (2, channels, *space), generator.choice(DTYPES), generator.random() < 0.2)
    w = x.new_zeros(channels, 1, *size)
    general = eager.indices(x, w, replace(where, flat=False), True)
    for mode, gap in ((1, False), (2, True)):
        for seen, expected in zip(cpu.indices(x, w, where, gap)[: mode + 1], general, strict=False):
            if seen.numel():
                assert equal(seen, expected)
    assert equal(cpu.value(x, w, where), general[0])
    assert equal(eager.value(x, w, where), general[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, w = torch.randn(20, 40).to(dtype), torch.randn(30, 40).to(dtype)
    y, arg, gap = cpu.indices(x, w, Dense(), True)
    assert (y.dtype, gap.dtype) == (dtype, torch.float32)
    assert torch.equal(arg, cpu.indices(x.float(), w.float(), Dense(), True)[1])
    assert torch.equal(y, eager.value(x, w, Dense()))


def test_strided_arguments() -> None:
    x, w = torch.randn(40, 33).t(), torch.randn(40, 20).t()
    assert torch.equal(cpu.value(x, w, Dense()), eager.value(x, w, Dense()))
    image, b = torch.randn(2, 9, 8, 3).movedim(-1, 1), torch.randn(3, 3, 5, 4).movedim(-1, 0)
    where = Window((1, 1), (1, 1), (1, 1), (1, 1))
    assert torch.equal(cpu.value(image, b, where), eager.value(image, b, where))


def test_threads_change_nothing() -> None:
    x, w = torch.randn(300, 200), torch.randn(150, 200)
    images, b = torch.randn(9, 4, 30, 30), torch.randn(4, 1, 5, 5)
    where = Window((1, 1), (1, 1), (2, 2), (2, 2), 4)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y, arg, gap = cpu.indices(x, w, Dense(), True)
            z, at, _ = cpu.indices(images, b, where, False)
            gradients = (
                *cpu.scatter(y, arg, x.shape, w.shape, Dense()),
                *cpu.scatter(z, at, images.shape, b.shape, where),
            )
            results.append((y, arg, gap, z, at, *gradients))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_concurrent_calls() -> None:
    x, w = torch.randn(64, 300), torch.randn(64, 300)
    expected = eager.value(x, w, Dense())
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: cpu.value(x, w, Dense()), range(40)))


def python(script: str, **environment: str) -> str:
    """What a fresh process prints."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


FORKING = """
    import os, torch
    from torch.utils.data import DataLoader
    import morphlightning.functional as mf
    torch.set_num_threads(2)
    x, w = torch.randn(256, 300), torch.randn(64, 300)
    expected = mf.dilation(x, w)
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 4
        def __getitem__(self, i): return torch.equal(mf.dilation(x, w), expected)
    if __name__ == "__main__":
        print(all(bool(b.all()) for b in DataLoader(Data(), num_workers=2, multiprocessing_context="fork")))
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(mf.dilation(x, w), expected) else 1)
        print(os.waitpid(child, 0)[1])
"""


def test_forked_workers_compute_alone() -> None:
    assert python(FORKING).split() == ["True", "0"]


CALL = """
    import torch, morphlightning.functional as mf
    from morphlightning import backends
    from morphlightning.ops.cpu import workers
    y = mf.dilation(torch.ones(1, 4), torch.zeros(3, 4))
    print(y.sum().item(), backends.current(), workers.cache_folder())
"""


def test_machine_code_is_kept_on_disk(tmp_path: Path) -> None:
    first = python(CALL, MORPHLIGHTNING_CACHE_DIR=str(tmp_path)).split()
    assert first[:2] == ["3.0", "numba"]
    kept = {path: path.stat().st_mtime_ns for path in Path(first[2]).rglob("*.nb?")}
    assert kept
    assert python(CALL, MORPHLIGHTNING_CACHE_DIR=str(tmp_path)).split() == first
    assert {path: path.stat().st_mtime_ns for path in Path(first[2]).rglob("*.nb?")} == kept


@pytest.mark.parametrize("damage", ["unusable", "truncated"])
def test_a_bad_cache_is_no_error(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    if damage == "unusable":
        folder.write_text("a file where the folder should be")
        assert python(CALL, MORPHLIGHTNING_CACHE_DIR=str(folder)).split() == ["3.0", "numba", "None"]
    else:
        python(CALL, MORPHLIGHTNING_CACHE_DIR=str(folder))
        for path in folder.rglob("*.nbi"):
            path.write_bytes(path.read_bytes()[:20])
        assert python(CALL, MORPHLIGHTNING_CACHE_DIR=str(folder)).split()[:2] == ["3.0", "numba"]


def test_without_numba_everything_works() -> None:
    script = """
        import sys
        sys.modules["numba"] = None
        import torch, morphlightning.functional as mf
        from morphlightning import backends, doctor
        x = torch.randn(3, 4, requires_grad=True)
        mf.dilation(x, torch.zeros(2, 4)).sum().backward()
        print(backends.current(), x.grad.sum().item())
        print([check.status for check in doctor.report() if check.name == "backend numba"])
    """
    # numba itself is a requirement: its absence is a note beside the line that says so
    assert python(script).splitlines() == ["eager 6.0", "['note']"]


def test_a_kernel_that_does_not_compile_leaves_the_work_to_eager() -> None:
    script = """
        import torch, morphlightning.functional as mf
        from morphlightning import backends
        from morphlightning.ops.cpu import workers
        def refuse(body): raise OSError("no memory to execute")
        workers._compiled = refuse
        print(mf.dilation(torch.ones(1, 2), torch.zeros(1, 2)).item(), backends.current())
        print(backends.available()["numba"])
    """
    assert python(script).splitlines() == ["1.0 eager", "OSError: no memory to execute"]


def test_plain_additions_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(40, 300), torch.randn(70, 300)
    images, b = torch.randn(2, 5, 9, 9), torch.randn(5, 5, 3, 3)
    where = Window((1, 1), (1, 1), (1, 1), (1, 1))
    for form in (False, True):
        monkeypatch.setattr(cpu.dense, "fused", lambda form=form: form)
        monkeypatch.setattr(cpu.window, "fused", lambda form=form: form)
        assert torch.equal(cpu.value(x, w, Dense()), eager.value(x, w, Dense()))
        assert torch.equal(cpu.value(images, b, where), eager.value(images, b, where))


@pytest.mark.parametrize("backend", ["eager", "numba"])
def test_backends_are_chosen_by_name(backend: str) -> None:
    x = torch.randn(20, 30, requires_grad=True)
    w = torch.randn(10, 30)
    with backends.use(backend):
        assert backends.current() == backend
        mf.erosion(x, w).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(1), torch.full((20,), 10.0))


def test_an_unknown_backend_is_refused() -> None:
    message = r"unknown backend 'cuda', from use\(\) or MORPHLIGHTNING_BACKEND; there are eager, numba, triton"
    with pytest.raises(backends.ConfigError, match=message), backends.use("cuda"):
        pass
    script = "import torch, morphlightning.functional as mf\nmf.dilation(torch.ones(1, 2), torch.zeros(1, 2))"
    with pytest.raises(AssertionError, match="unknown backend 'nimba'"):
        python(script, MORPHLIGHTNING_BACKEND="nimba")
    assert "eager" in python(
        "from morphlightning import backends; print(backends.current())", MORPHLIGHTNING_BACKEND="eager"
    )
