"""Vector instructions for numba: what LLVM does not find by itself in plain loops, written as LLVM IR.

numba marks comparisons, not selections, as free of NaN, so LLVM never recognizes the maximum of a reduction and a plain
loop runs at a twentieth of the machine's speed. The intrinsics here are typed by the arrays that they are given
(float32 or float64) and by the width of this machine's vector registers; nothing else depends on the processor.

The tile is the heart of every max-plus product: ``rows x vectors`` accumulators live in registers while

    c[m, n] = max_q  s * a[m * lda + q] + p[offset(q) + n]

runs over q, with a broadcast and p loaded as vectors. Limit: on Zen 5 addition and maximum share two pipes, so one pair
a cycle; written as fma(a, s, p) with a run-time s = +-1, which is exact, additions move to the two other pipes and the
limit doubles. Where maxima sit on the fma pipes instead (Zen 2 and 3), the plain addition is the faster one: both
forms are emitted, and the caller says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import llvmlite.binding as llvm
from llvmlite import ir
from numba import extending, types

intrinsic: Any = extending.intrinsic  # its types describe the compiler's view, ours the kernel's
Mode = Literal["value", "index", "gap", "block", "block_gap"]

FEATURES = llvm.get_host_cpu_features()
X86 = any(name in FEATURES for name in ("sse2", "avx"))
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16
STATES: dict[Mode, int] = {"value": 1, "index": 2, "gap": 3, "block": 2, "block_gap": 3}
REGISTERS = 16 if X86 and VECTOR_BYTES < 64 else 32
FUSED = bool(FEATURES.get("fma")) or not X86  # without the instruction llvm.fma would call the C library
MASK = 32
"""Lanes that :func:`equal_lanes` compares at once: as many as bits of its result."""

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
LLVM_TYPES = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
INDEX_TYPES = {types.float32: I32, types.float64: I64}  # as wide as the numbers, so that one mask serves both


def lanes(dtype: types.Float) -> int:
    """Numbers in a vector register."""
    return VECTOR_BYTES * 8 // int(dtype.bitwidth)


# ---------------------------------------------------------------------------------------------- building blocks
class Emitter:
    """Emits the body of one intrinsic: vectors of one element type at elements of numba arrays."""

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.context, self.builder, self.dtype = context, builder, dtype
        self.number, self.whole, self.lanes = LLVM_TYPES[dtype], INDEX_TYPES[dtype], lanes(dtype)
        self.bytes = dtype.bitwidth // 8

    def function(self, name: str, arguments: list[Any], alias: bool = False) -> tuple[Any, Emitter | None]:
        """The function ``name`` of this module and, the first time, what emits its body; arrays may be the same."""
        name = f"{name}_{self.dtype}"
        known = self.builder.module.globals.get(name)
        if known:
            return known, None
        function = ir.Function(self.builder.module, ir.FunctionType(ir.VoidType(), arguments), name=name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        for argument in function.args:
            if isinstance(argument.type, ir.PointerType) and not alias:
                argument.add_attribute("noalias")
        return function, Emitter(self.context, ir.IRBuilder(function.append_basic_block("entry")), self.dtype)

    def loop(self) -> tuple[Any, Any, Any]:
        """Begin a loop: the block before it, its body, where the builder is now, and the block after it."""
        function, before = self.builder.function, self.builder.block
        body, after = function.append_basic_block("loop"), function.append_basic_block("done")
        self.builder.branch(body)
        self.builder.position_at_end(body)
        return before, body, after

    def join(self, phi: Any, before: Any, first: Any, loop: Any, later: Any) -> None:
        """Complete a variable of a loop."""
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)

    def as_whole(self, number: Any) -> Any:
        """A 64-bit integer as an index."""
        return self.builder.trunc(number, I32) if self.whole == I32 else number

    def none(self, count: int) -> Any:
        """The maximum of nothing."""
        return self.splat(ir.Constant(self.number, -math.inf), count)

    def contest(self, challenger: Sequence[Any], holder: Sequence[Any]) -> list[Any]:
        """Maxima, their names and the largest losers of two candidates; the challenger must be larger to win."""
        greater = self.builder.fcmp_ordered(">", challenger[0], holder[0])
        won = [self.builder.select(greater, new, old) for new, old in zip(challenger[:2], holder[:2], strict=True)]
        if len(holder) < 3:
            return won
        loser = self.builder.select(greater, holder[0], challenger[0])
        closer = self.builder.fcmp_ordered(">", loser, holder[2])
        return [*won, self.builder.select(closer, loser, holder[2])]

    def pointer(self, array: Any, value: Any, element: Any, to: Any = None) -> Any:
        """The address of an element of a numba array."""
        data = self.context.make_array(array)(self.context, self.builder, value).data
        size = I64(array.dtype.bitwidth // 8)
        address = self.builder.add(self.builder.ptrtoint(data, I64), self.builder.mul(element, size))
        return self.builder.inttoptr(address, (to or self.number).as_pointer())

    def load(self, pointer: Any, element: Any, count: int, kind: Any = None) -> Any:
        """``count`` neighbours, from an address that is aligned to one element."""
        kind = kind or self.number
        where = self.builder.gep(pointer, [element], inbounds=True)
        vector = ir.VectorType(kind, count)
        return self.builder.load(self.builder.bitcast(where, vector.as_pointer()), align=self.bytes)

    def store(self, vector: Any, pointer: Any, element: Any) -> None:
        """Write neighbours to an address that is aligned to one element."""
        where = self.builder.gep(pointer, [element], inbounds=True)
        where = self.builder.bitcast(where, vector.type.as_pointer())
        self.builder.store(vector, where, align=4 if vector.type.element == I32 else self.bytes)

    def splat(self, scalar: Any, count: int) -> Any:
        """A vector of equal numbers."""
        vector = ir.VectorType(scalar.type, count)
        if isinstance(scalar, ir.Constant):
            return ir.Constant(vector, [scalar.constant] * count)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count))

    def intrinsic(self, name: str, result: Any, arguments: list[Any], values: list[Any], **flags: Any) -> Any:
        """Call one of LLVM's intrinsics."""
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name=name)
        return self.builder.call(function, values, **flags)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Compute a * b + c, rounded once."""
        return self.intrinsic(f"llvm.fma.v{a.type.count}f{self.dtype.bitwidth}", a.type, [a.type] * 3, [a, b, c])

    def score(self, x: Any, sign: Any, w: Any) -> Any:
        """Compute s * x + w: the same number whether fused or not, since s is 1 or -1."""
        return self.fma(x, sign, w) if FUSED else self.builder.fadd(self.builder.fmul(x, sign), w)

    def largest(self, vector: Any) -> Any:
        """The largest number of a vector without NaN."""
        name = f"llvm.vector.reduce.fmax.v{vector.type.count}f{self.dtype.bitwidth}"
        return self.intrinsic(name, self.number, [vector.type], [vector], fastmath=("nnan",))


# -------------------------------------------------------------------------------------------------------- tiles
def _build_tile(emit: Emitter, rows: int, vectors: int, mode: Mode, table: bool, fused: bool) -> Any:
    """Emit void tile(a, lda, p, offsets or stride, q0, q1, c, index, second, ldc, sign); see :func:`make_tile`."""
    name = f"tile_{rows}x{vectors}_{mode}_{table}_{fused}_{emit.dtype}"
    pointer, offsets = emit.number.as_pointer(), I32.as_pointer() if table else I64
    state = [pointer, emit.whole.as_pointer(), pointer, I64]
    arguments = [pointer, I64, pointer, offsets, I64, I64, *state, emit.number]
    function, body = emit.function(name, arguments)
    if body is None:
        return function
    emit = body
    a, lda, p, offset, begin, end, c, index, second, ldc, sign = function.args
    builder, count, blocks = emit.builder, emit.lanes, mode.startswith("block")
    firsts = [builder.mul(ldc, I64(m)) for m in range(rows)]
    cells = [(m, v, builder.add(firsts[m], I64(v * count))) for m in range(rows) for v in range(vectors)]
    memory = [(c, emit.number), (index, emit.whole), (second, emit.number)][: STATES[mode]]
    carried = memory[:1] if blocks else memory  # what the loop itself updates
    signs = emit.splat(sign, count)
    starts = [builder.gep(a, [builder.mul(lda, I64(m))], inbounds=True) for m in range(rows)]
    entry, loop, done = emit.loop()

    q = builder.phi(I64)
    held = [[builder.phi(ir.VectorType(kind, count)) for _ in cells] for _, kind in carried]
    base = builder.mul(q, offset) if not table else None
    if base is None:
        base = builder.sext(builder.load(builder.gep(offset, [q], inbounds=True), align=4), I64)
    loaded = [emit.load(p, builder.add(base, I64(v * count)), count) for v in range(vectors)]
    scalars = [builder.load(builder.gep(start, [q], inbounds=True), align=emit.bytes) for start in starts]
    left = [emit.splat(scalar if fused else builder.fmul(scalar, sign), count) for scalar in scalars]
    here = emit.splat(emit.as_whole(q), count)
    updated: list[list[Any]] = [[] for _ in carried]
    for k, (m, v, _) in enumerate(cells):
        score = emit.fma(left[m], signs, loaded[v]) if fused else builder.fadd(left[m], loaded[v])
        challenger = (score, here, emit.none(count))[: len(carried)]
        for state, value in zip(updated, emit.contest(challenger, [phis[k] for phis in held]), strict=True):
            state.append(value)
    following = builder.add(q, I64(1))
    initial = (emit.none(count), emit.splat(emit.whole(0), count), emit.none(count))
    emit.join(q, entry, begin, loop, following)
    for phis, first, values in zip(held, initial, updated, strict=False):
        for phi, value in zip(phis, values, strict=True):
            emit.join(phi, entry, first, loop, value)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, done)

    builder.position_at_end(done)
    number = emit.splat(emit.as_whole(begin), count)
    for k, (_, _, at) in enumerate(cells):
        values = [state[k] for state in updated]
        if blocks:
            before = [emit.load(where, at, count, kind) for where, kind in memory]
            values = emit.contest((values[0], number, emit.none(count))[: len(memory)], before)
        for (where, _), value in zip(memory, values, strict=True):
            emit.store(value, where, at)
    builder.ret_void()
    return function


def make_tile(rows: int, vectors: int, mode: Mode, table: bool = False) -> Any:
    """An intrinsic for one shape of tile.

    ``tile(a, ia, lda, p, ip, offset, q0, q1, c, index, second, ic, ldc, sign, fused)``: element ia of the array a is
    a[0, 0], element ip of p is p[0]; offset is a stride, or an array of int32 offsets where ``table``. c, index and
    second, from element ic, hold rows of vectors * lanes numbers, ldc apart: maxima, and by ``mode``

    - ``value``: nothing else;
    - ``index``, ``gap``: the first winner q; the largest other candidate too;
    - ``block``, ``block_gap``: the candidates q0 ... q1 - 1 compete as one, named q0, with what is there already.

    NaN never wins. q0 < q1.
    """

    @intrinsic
    def tile(
        typing: Any, a: Any, ia: Any, lda: Any, p: Any, ip: Any, offset: Any, q0: Any, q1: Any,
        c: Any, index: Any, second: Any, ic: Any, ldc: Any, sign: Any, fused: Any,
    ) -> Any:  # fmt: skip
        whole = types.int64
        step = offset if table else whole
        state = (c, index, second, whole, whole)
        signature = types.void(a, whole, whole, p, whole, step, whole, whole, *state, a.dtype, whole)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit = Emitter(context, builder, a.dtype)
            left, right = emit.pointer(a, values[0], values[1]), emit.pointer(p, values[3], values[4])
            steps = emit.pointer(offset, values[5], I64(0), I32) if table else values[5]
            best, others = emit.pointer(c, values[8], values[11]), emit.pointer(second, values[10], values[11])
            places = emit.pointer(index, values[9], values[11], emit.whole)
            arguments = [left, values[2], right, steps, *values[6:8], best, places, others, *values[12:14]]
            plain = _build_tile(emit, rows, vectors, mode, table, False)
            if FUSED:
                with builder.if_else(builder.icmp_signed("!=", values[14], I64(0))) as (yes, no):
                    with yes:
                        builder.call(_build_tile(emit, rows, vectors, mode, table, True), arguments)
                    with no:
                        builder.call(plain, arguments)
            else:
                builder.call(plain, arguments)
            return context.get_dummy_value()

        return signature, generate

    return tile


# ------------------------------------------------------------------------------------- rows, along the reduction
def _build_dot(emit: Emitter, outputs: int) -> Any:
    """Emit void dot(x, w, ldw, n, y, sign): y[i] = max over k < n of s * x[k] + w[i * ldw + k]; n >= lanes."""
    pointer = emit.number.as_pointer()
    function, body = emit.function(f"dot_{outputs}", [pointer, pointer, I64, I64, pointer, emit.number])
    if body is None:
        return function
    emit = body
    x, w, ldw, n, y, sign = function.args
    builder, count = emit.builder, emit.lanes
    signs, none, last = emit.splat(sign, count), emit.none(count), builder.sub(n, I64(count))
    starts = [builder.gep(w, [builder.mul(ldw, I64(i))], inbounds=True) for i in range(outputs)]
    entry, loop, done = emit.loop()
    k = builder.phi(I64)
    held = [builder.phi(none.type) for _ in range(outputs)]
    # the last vector overlaps the one before: a maximum may see a candidate twice
    inside = builder.icmp_signed("<", k, last)
    at = builder.select(inside, k, last)
    left = emit.load(x, at, count)
    scores = [emit.score(left, signs, emit.load(start, at, count)) for start in starts]
    updated = [emit.contest([score], [best])[0] for score, best in zip(scores, held, strict=True)]
    emit.join(k, entry, I64(0), loop, builder.add(k, I64(count)))
    for phi, value in zip(held, updated, strict=True):
        emit.join(phi, entry, none, loop, value)
    builder.cbranch(inside, loop, done)
    builder.position_at_end(done)
    for i, value in enumerate(updated):
        builder.store(emit.largest(value), builder.gep(y, [I64(i)], inbounds=True), align=emit.bytes)
    builder.ret_void()
    return function


def make_dot(outputs: int) -> Any:
    """An intrinsic ``dot(x, ix, w, iw, ldw, n, y, iy, sign)``: ``outputs`` maxima over one row x, n >= lanes."""

    @intrinsic
    def dot(typing: Any, x: Any, ix: Any, w: Any, iw: Any, ldw: Any, n: Any, y: Any, iy: Any, sign: Any) -> Any:
        whole = types.int64

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit = Emitter(context, builder, x.dtype)
            left, right = emit.pointer(x, values[0], values[1]), emit.pointer(w, values[2], values[3])
            out = emit.pointer(y, values[6], values[7])
            builder.call(_build_dot(emit, outputs), [left, right, values[4], values[5], out, values[8]])
            return context.get_dummy_value()

        return types.void(x, whole, w, whole, whole, whole, y, whole, x.dtype), generate

    return dot


# ------------------------------------------------------------------------------------------------ small helpers
def _scores(emit: Emitter, values: Any, kinds: tuple[Any, Any]) -> Any:
    x, ix, w, iw, sign = values[:5]
    left = emit.load(emit.pointer(kinds[0], x, ix), I64(0), MASK)
    right = emit.load(emit.pointer(kinds[1], w, iw), I64(0), MASK)
    return emit.score(left, emit.splat(sign, MASK), right)


@intrinsic
def equal_lanes(typing: Any, x: Any, ix: Any, w: Any, iw: Any, sign: Any, y: Any) -> Any:
    """Bit k says whether s * x[ix + k] + w[iw + k] equals y, for k < MASK."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        scores = _scores(emit, values, (x, w))
        return builder.bitcast(builder.fcmp_ordered("==", scores, emit.splat(values[5], MASK)), I32)

    return types.uint32(x, types.int64, w, types.int64, x.dtype, x.dtype), generate


@intrinsic
def largest_but(typing: Any, x: Any, ix: Any, w: Any, iw: Any, sign: Any, lanes: Any) -> Any:
    """The maximum of s * x[ix + k] + w[iw + k] over k < MASK whose bit in ``lanes`` is not set."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        scores = _scores(emit, values, (x, w))
        left_out = builder.bitcast(values[5], ir.VectorType(I1, MASK))
        none = emit.splat(ir.Constant(emit.number, -math.inf), MASK)
        return emit.largest(builder.select(left_out, none, scores))

    return x.dtype(x, types.int64, w, types.int64, x.dtype, types.uint32), generate


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set; 32 if none is."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, types.float32)
        return builder.zext(emit.intrinsic("llvm.cttz.i32", I32, [I32, I1], [values[0], I1(0)]), I64)

    return types.int64(types.uint32), generate


@intrinsic
def transpose(typing: Any, source: Any, at: Any, ld: Any, target: Any, to: Any, ldt: Any) -> Any:
    """Write the transpose of a block of lanes x lanes numbers: log2(lanes) rounds of interleaving."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, source.dtype)
        n = emit.lanes
        begin, end = emit.pointer(source, values[0], values[1]), emit.pointer(target, values[3], values[4])
        rows = [emit.load(begin, builder.mul(values[2], I64(i)), n) for i in range(n)]
        halves = [[h * n // 2 + j // 2 + n * (j % 2) for j in range(n)] for h in (0, 1)]
        low, high = (ir.Constant(ir.VectorType(I32, n), half) for half in halves)
        for _ in range(n.bit_length() - 1):
            pairs = list(zip(rows[: n // 2], rows[n // 2 :], strict=True))
            rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
        for i, row in enumerate(rows):
            emit.store(row, end, builder.mul(values[5], I64(i)))
        return context.get_dummy_value()

    whole = types.int64
    return types.void(source, whole, whole, target, whole, whole), generate


@intrinsic
def draw(typing: Any, tickets: Any) -> Any:
    """Take the next number from the counter in element 0, alone among all threads."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(tickets)(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.bitcast(data, I64.as_pointer()), I64(1), "monotonic")

    return types.int64(tickets), generate
