"""Compiled workers on torch's own threads.

A worker is a function of one array of 64-bit slots, compiled to machine code without Python and called through ctypes.
Slot 0 is a counter from which every thread draws task numbers until none are left, so that the result does not depend
on how many threads there are. They are torch's OpenMP threads: numba's own layers change torch's thread count, kill
forked DataLoader workers or abort under concurrent calls. A forked child, whose parent's pool is gone, works alone.

Machine code is kept on disk under a fingerprint of all kernel sources: numba by itself would miss an edit in a module
that a cached function calls.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, types
from numba.core import cgutils
from torch import Tensor

from morphlightning.ops.cpu.simd import draw, intrinsic

SLOTS = 64
CACHE = "MORPHLIGHTNING_CACHE_DIR"
SMALL = 1 << 18
"""Scores below which a call stays on one thread: 10 microseconds of work, ten times what waking threads costs."""
carray: Any = numba.carray  # type: ignore[attr-defined]
kernel: Any = njit(nogil=True, boundscheck=False, error_model="numpy")
"""Compiles functions that workers call."""

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_compiling = threading.Lock()


class KernelError(RuntimeError):
    """A kernel could not be compiled on this machine."""


class Worker:
    """A compiled function of slots, made at its first call."""

    def __init__(self, body: Callable[[Any], None]) -> None:
        self._body = body
        self._address = 0
        self._call: Callable[[int], None] | None = None

    def __call__(self, tasks: int, work: int, *values: int | float | Tensor) -> None:
        """Do ``tasks`` tasks.

        Args:
            tasks: Numbers to draw.
            work: Scores that they compute together; few of them stay on one thread.
            values: Slots 2, 3, ...; a tensor stands for its address, a float for its bits. The caller keeps tensors
                alive.
        """
        call = self._call or self.compile()
        slots = np.zeros(SLOTS, np.int64)
        slots[1] = tasks
        for k, value in enumerate(values, 2):
            if isinstance(value, float):
                slots[k : k + 1].view(np.float64)[0] = value
            else:
                slots[k] = value if isinstance(value, int) else value.data_ptr()
        threads = 1 if work < SMALL else min(torch.get_num_threads(), tasks)
        if threads <= 1 or _pool.forked:
            call(slots.ctypes.data)
        else:
            _pool.run(self._address, call, slots.ctypes.data, threads)

    def compile(self) -> Callable[[int], None]:
        """The machine code, made or loaded once; raises KernelError where that cannot be done."""
        if self._call is not None:
            return self._call
        with _compiling:
            if self._call is None:
                try:
                    self._compiled = _compiled(self._body)
                except Exception as error:  # whatever the compiler does not like, eager goes on
                    raise KernelError(f"{type(error).__name__}: {error}") from error
                self._address = self._compiled.address
                self._call = _Entry(self._address)
        return self._call


def _compiled(body: Callable[[Any], None]) -> Any:
    signature = types.void(types.voidptr)
    folder = cache_folder()
    if folder is not None:
        try:
            with _cached_in(folder):
                return numba.cfunc(signature, cache=True)(body)
        except Exception:  # noqa: S110 - an unwritable, full or damaged cache costs time, nothing else
            pass
    return numba.cfunc(signature)(body)


def cache_folder() -> Path | None:
    """Where machine code is kept; None where nothing can be written.

    MORPHLIGHTNING_CACHE_DIR, or else NUMBA_CACHE_DIR, or else ~/.cache/morphlightning.
    """
    base = os.environ.get(CACHE) or os.environ.get("NUMBA_CACHE_DIR")
    try:
        folder = (Path(base) if base else Path.home() / ".cache" / "morphlightning") / f"kernels-{_fingerprint()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _fingerprint() -> str:
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(sources + numba.__version__.encode()).hexdigest()[:16]


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


# ------------------------------------------------------------------------------------------------------ threads
class _Pool:
    """torch's OpenMP threads where its library can be reached, else Python threads, which wait outside the GIL."""

    def __init__(self) -> None:
        self.forked = False
        self._parallel = _openmp()
        self._executor: ThreadPoolExecutor | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def run(self, address: int, call: Callable[[int], None], slots: int, threads: int) -> None:
        if self._parallel is not None:
            self._parallel(address, slots, threads, 0)
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="morphlightning")
        helpers = [self._executor.submit(call, slots) for _ in range(threads - 1)]
        call(slots)
        for helper in helpers:
            helper.result()

    def _after_fork(self) -> None:
        self.forked, self._executor = True, None


def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel of the library that torch itself has loaded."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    for name in (*map(str, bundled), None):
        try:
            parallel = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError, TypeError):
            continue
        parallel.restype = None
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        return parallel
    return None


_pool = _Pool()


# -------------------------------------------------------------------------------------------- memory for kernels
_local = threading.local()


def workspace(count: int, dtype: torch.dtype) -> Tensor:
    """At least ``count`` numbers that this thread may scribble on until it asks again.

    Fresh pages cost more than copies. Kept up to 32 MiB; a larger one is given back after use.
    """
    held: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("held", {})
    kept = held.get(dtype)
    if kept is None or kept.numel() < count:
        kept = torch.empty(count, dtype=dtype)
        if kept.nbytes <= 1 << 25:
            held[dtype] = kept
    return kept


# ----------------------------------------------------------------------------------------------- inside a worker
@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@kernel
def numbers(address, count, dtype):
    """The array at an address."""
    return carray(_pointer(address), (count,), dtype)


@kernel
def floats_of(args):
    """The slots as float64."""
    return carray(args, (SLOTS,), np.float64)


@kernel
def slots_of(args):
    """The slots as integers."""
    return carray(args, (SLOTS,), np.int64)


@kernel
def next_task(slots):
    """The number of a task that nobody else does; -1 when there are none left."""
    task = draw(slots)
    return task if task < slots[1] else -1


unsigned: Any = np.uint64
"""Marks an index that is not negative: numba wraps signed ones, which costs more than the access itself."""
