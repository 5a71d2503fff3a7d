"""Peak extra memory of one call: what a process holds at most during it, beyond what it held before.

On processors each operator is measured in a fresh process, after one call that compiles what is compiled and after
freed memory went back to the system: the high-water mark of the resident set (Linux's VmHWM) less what was resident.
On CUDA devices torch's allocator is asked.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import Candidate, Mode, Setting

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_child(options: Sequence[str], case: str, mode: Mode, candidate: str) -> float | None:
    """MiB, measured by a process that is started with the same options; None where it could not be measured."""
    command = [sys.executable, str(Path(__file__).parent), *options, "--peak-memory-of", case, mode, candidate]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    found: float | None = json.loads(done.stdout.splitlines()[-1])
    return found


def of_call(setting: Setting, candidate: Candidate, mode: Mode) -> float | None:
    """MiB of a call in this process; None where the system does not say."""
    with torch.set_grad_enabled(mode == "step"), candidate.context():
        call = candidate.call(mode)
        call()
        candidate.forget()
        gc.collect()
        return _on_device(call) if setting.device == "cuda" else _resident_set(call)


def _on_device(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident_set(call: Callable[[], Any]) -> float | None:
    if not STATUS.exists():
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    try:
        RESET.write_text("5")
    except OSError:
        return None
    before = _kibibytes("VmRSS")
    kept = call()
    peak = _kibibytes("VmHWM")
    del kept
    return max(0.0, (peak - before) / 1024)


def _kibibytes(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
