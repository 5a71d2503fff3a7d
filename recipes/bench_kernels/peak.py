"""The physical limit of max-plus products, measured: additions and maxima on registers alone, and copies.

A max-plus pair costs one addition and one maximum. The loop below keeps as many independent accumulators in vector
registers as there is room for and touches no memory. It comes in two forms, since which one is faster depends on how a
processor shares its pipes: an addition, or a multiply-add by a run-time one (exact, and on other pipes than the maximum
on some processors). Nothing that really loads its operands can be faster than the faster of the two.

CUDA devices are held against the number of pairs that they can issue instead: 128 lanes of a multiprocessor each issue
one instruction a cycle, a pair is two, and the maximum alone is limited to 64 a cycle (NVIDIA's CUDA C++ Programming
Guide, "Arithmetic Instructions").
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import llvmlite.binding as llvm
import torch
from cases import Limit, Setting
from torch import Tensor

ITERATIONS = 1_000_000
PAIRS_A_CYCLE_AND_SM = 64
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")


@cache
def _vectors() -> tuple[int, int]:
    """Lanes of a vector of float32, and accumulators that fit into the registers beside three operands."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 24
    return (8 if features.get("avx2") else 4), (12 if X86 else 24)


def _loop(fused: bool) -> str:
    """LLVM IR of a function (iterations, one, step, floor) -> float: acc = max(acc * one + step, floor), again."""
    lanes, count = _vectors()
    vector, fma = f"<{lanes} x float>", f"@llvm.fma.v{lanes}f32"
    splats, phis, body = [], [], []
    for name in ("one", "step", "floor"):
        splats.append(f"%{name}0 = insertelement {vector} undef, float %{name}, i32 0")
        splats.append(f"%{name}s = shufflevector {vector} %{name}0, {vector} undef, <{lanes} x i32> zeroinitializer")
    for k in range(count):
        phis.append(f"%a{k} = phi {vector} [ %floors, %entry ], [ %m{k}, %loop ]")
        if fused:
            body.append(f"%t{k} = call {vector} {fma}({vector} %a{k}, {vector} %ones, {vector} %steps)")
        else:
            body.append(f"%t{k} = fadd {vector} %a{k}, %steps")
        body += _maximum(k, lanes)
    sums = [f"%s{k} = fadd {vector} {f'%s{k - 1}' if k else '%floors'}, %m{k}" for k in range(count)]
    lines = [
        f"declare {vector} {fma}({vector}, {vector}, {vector})",
        f"declare {vector} @llvm.maximum.v{lanes}f32({vector}, {vector})",
        "define float @loop(i64 %n, float %one, float %step, float %floor) {",
        "entry:",
        *splats,
        "br label %loop",
        "loop:",
        "%i = phi i64 [ %n, %entry ], [ %rest, %loop ]",
        *phis,
        *body,
        "%rest = sub i64 %i, 1",
        "%more = icmp sgt i64 %rest, 0",
        "br i1 %more, label %loop, label %done",
        "done:",
        *sums,
        f"%result = extractelement {vector} %s{count - 1}, i32 0",
        "ret float %result",
        "}",
    ]
    return "\n".join(lines)


def _maximum(k: int, lanes: int) -> list[str]:
    """What becomes one instruction: x86 has comparison with selection, others the maximum that propagates NaN."""
    vector = f"<{lanes} x float>"
    if X86:
        return [
            f"%c{k} = fcmp ogt {vector} %t{k}, %floors",
            f"%m{k} = select <{lanes} x i1> %c{k}, {vector} %t{k}, {vector} %floors",
        ]
    return [f"%m{k} = call {vector} @llvm.maximum.v{lanes}f32({vector} %t{k}, {vector} %floors)"]


@cache
def _compile(fused: bool) -> tuple[Callable[..., float], object]:
    """The loop as a function, and the engine that owns its code."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_loop(fused))
    module.triple = llvm.get_process_triple()
    features = llvm.get_host_cpu_features().flatten()
    # without the preference LLVM halves 512-bit vectors on some processors
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.replace("+prefer-256-bit", "-prefer-256-bit"), opt=3
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, *[ctypes.c_float] * 3)
    return signature(engine.get_function_address("loop")), engine


def pairs(setting: Setting) -> list[Limit]:
    """Additions with maxima: both forms of the loop, on as many threads as the operators may use."""
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        per_second = properties.multi_processor_count * properties.clock_rate * 1e3 * PAIRS_A_CYCLE_AND_SM
        return [Limit(f"{PAIRS_A_CYCLE_AND_SM} pairs a cycle and multiprocessor", per_second)]
    lanes, count = _vectors()
    work = ITERATIONS * lanes * count * setting.threads
    forms = {"add and max": False, "multiply-add and max": True}
    if X86 and not llvm.get_host_cpu_features().get("fma"):
        del forms["multiply-add and max"]  # it would be a function of the C library
    return [Limit(name, work, _on_threads(fused, setting.threads)) for name, fused in forms.items()]


def _on_threads(fused: bool, threads: int) -> Callable[[], object]:
    loop, _ = _compile(fused)
    arguments = (ITERATIONS, 1.0, 0.0, -1.0)
    if threads == 1:
        return lambda: loop(*arguments)
    pool = ThreadPoolExecutor(threads)  # ctypes lets go of the interpreter lock
    return lambda: list(pool.map(lambda _: loop(*arguments), range(threads)))


def copies(source: Tensor) -> list[Limit]:
    """Elements copied into a tensor that is there already: read once, written once."""
    source = source.detach()
    target = torch.empty_like(source)
    return [Limit("copy", source.numel(), lambda: target.copy_(source))]
