"""Where figures come from: machine, libraries, memory allocator, and what to keep in mind when they are quoted."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from cases import Setting
from peers import PEERS

ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
PACKAGES = ("morphlightning", "torch", "numpy", "numba", "llvmlite", "triton", *PEERS)


def facts(setting: Setting) -> dict[str, str]:
    """What a figure depends on, by name."""
    clock = "process CPU time" if setting.device == "cpu" and setting.threads == 1 else "wall clock"
    found = {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else "cpu",
        "threads": f"{setting.threads} {'thread' if setting.threads == 1 else 'threads'}, {clock}",
        "backends": ", ".join(setting.backends()),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; {'; '.join(libraries())}",
        "allocator": allocator(),
        "packages": ", ".join(f"{name} {number}" for name in PACKAGES if (number := installed(name))),
    }
    return {name: value for name, value in found.items() if value}


def caveats(setting: Setting) -> list[str]:
    """What must stand beside a claim."""
    found = ["Ratios hold for this machine and these versions; state both with a claim."]
    on_cpu = setting.device == "cpu"
    if on_cpu and torch.backends.mkl.is_available():
        found.append(
            "torch's MKL takes its AVX2 path on AMD processors: there nn.Linear as shipped is not the fastest matrix "
            "product of the machine."
        )
    if on_cpu and "glibc" in allocator():
        found.append(
            "glibc gives large temporaries back to the system after every call, which slows the broadcast forms most; "
            "LD_PRELOAD=libtcmalloc_minimal.so.4 spares them that."
        )
    return found


def processor() -> str:
    """The model, as Linux names it."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].split(":")[1].strip() if models else platform.processor() or "unknown processor"


def allocator() -> str:
    """What serves malloc: a library that is preloaded or linked, else that of the C library."""
    maps, preload = Path("/proc/self/maps"), os.environ.get("LD_PRELOAD", "")
    loaded = maps.read_text() if maps.exists() else preload
    name = next((name for name in ALLOCATORS if name in loaded), " ".join(platform.libc_ver()).strip() or "system")
    return f"{name} (LD_PRELOAD={preload})" if preload else name


def libraries() -> list[str]:
    """The lines of torch's configuration that name its matrix libraries."""
    lines = (line.strip(" -") for line in torch.__config__.show().splitlines())
    return [line for line in lines if line.startswith(("Intel(R) oneAPI", "Intel(R) Math", "Intel(R) MKL", "OpenMP"))]


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
