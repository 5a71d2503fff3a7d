"""Passes over neighbouring numbers, vector by vector: what stands before and after the tiles.

Plain loops over arrays that might overlap are not vectorized; here nothing overlaps but, where that is harmless, the
last vector and the one before. Limit: the loads and stores of the first-level cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from morphlightning.ops.cpu.simd import I1, I32, I64, VECTOR_BYTES, Emitter, intrinsic


def _build_any_above(emit: Emitter) -> Any:
    """Emit void any_above(x, n, sign, limit, found): found[0] says whether some s * x[k] is above; n >= lanes."""
    number = emit.number
    function, body = emit.function("any_above", [number.as_pointer(), I64, number, number, I64.as_pointer()])
    if body is None:
        return function
    emit = body
    x, n, sign, limit, found = function.args
    builder, count = emit.builder, emit.lanes
    signs, limits, last = emit.splat(sign, count), emit.splat(limit, count), builder.sub(n, I64(count))
    entry, loop, done = emit.loop()
    k, seen = builder.phi(I64), builder.phi(ir.VectorType(I1, count))
    inside = builder.icmp_signed("<", k, last)
    vector = builder.fmul(emit.load(x, builder.select(inside, k, last), count), signs)
    above = builder.or_(seen, builder.fcmp_unordered(">", vector, limits))  # NaN as well
    emit.join(k, entry, I64(0), loop, builder.add(k, I64(count)))
    emit.join(seen, entry, ir.Constant(above.type, [0] * count), loop, above)
    builder.cbranch(inside, loop, done)
    builder.position_at_end(done)
    some = builder.icmp_unsigned("!=", builder.bitcast(above, ir.IntType(count)), ir.IntType(count)(0))
    builder.store(builder.zext(some, I64), found)
    builder.ret_void()
    return function


@intrinsic
def _any_above(typing: Any, x: Any, ix: Any, n: Any, sign: Any, limit: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        found = cgutils.alloca_once(builder, I64)
        arguments = [emit.pointer(x, values[0], values[1]), *values[2:], found]
        builder.call(_build_any_above(emit), arguments)
        return builder.load(found)

    return types.int64(x, types.int64, types.int64, x.dtype, x.dtype), generate


@njit(nogil=True, boundscheck=False)
def any_above(x, ix, n, sign, limit):
    """Whether some of s * x[ix], ..., s * x[ix + n - 1] is NaN or above the limit."""
    if n * x.itemsize >= VECTOR_BYTES:
        return _any_above(x, ix, n, sign, limit) > 0
    for k in range(ix, ix + n):  # noqa: SIM110 - numba compiles loops
        if not sign * x[k] <= limit:
            return True
    return False


def _by_vectors(emit: Emitter, n: Any, *together: int) -> Iterator[tuple[int, Any]]:
    """Emit loops over k < n, by ``together`` numbers, by vectors, and by the numbers that remain; yields step and k."""
    builder, first = emit.builder, I64(0)
    for step in (*together, emit.lanes, 1):
        end = builder.and_(n, I64(-step))
        some, after = (builder.function.append_basic_block(name) for name in ("some", "after"))
        builder.cbranch(builder.icmp_signed("<", first, end), some, after)
        builder.position_at_end(some)
        entry, loop, done = emit.loop()
        k = builder.phi(I64)
        yield step, k
        following = builder.add(k, I64(step))
        emit.join(k, entry, first, loop, following)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
        builder.branch(after)
        builder.position_at_end(after)
        first = end


def _elementwise(
    emit: Emitter, name: str, inputs: Sequence[Any], output: Any, scalars: int, form: Callable[..., Any]
) -> Any:
    """Emit void name(inputs..., output, n, scalars...): form(emitter, count, vectors..., scalars...) for n elements."""
    pointers = [kind.as_pointer() for kind in (*inputs, output)]
    function, body = emit.function(name, [*pointers, I64, *[emit.number] * scalars])
    if body is None:
        return function
    *sources, target, n = function.args[: len(pointers) + 1]
    builder = body.builder
    enough = builder.icmp_signed(">=", n, I64(body.lanes))
    for count, condition in ((body.lanes, enough), (1, builder.not_(enough))):
        with builder.if_then(condition):
            last = builder.sub(n, I64(count))
            entry, loop, done = body.loop()
            k = builder.phi(I64)
            inside = builder.icmp_signed("<", k, last)
            at = builder.select(inside, k, last)  # the last vector overlaps the one before
            vectors = [body.load(where, at, count, kind) for where, kind in zip(sources, inputs, strict=True)]
            numbers = [body.splat(number, count) for number in function.args[len(pointers) + 1 :]]
            body.store(form(body, count, *vectors, *numbers), target, at)
            body.join(k, entry, I64(0), loop, builder.add(k, I64(count)))
            builder.cbranch(inside, loop, done)
            builder.position_at_end(done)
    builder.ret_void()
    return function


@intrinsic
def copy_signed(typing: Any, x: Any, ix: Any, target: Any, to: Any, n: Any, sign: Any) -> Any:
    """target[to + k] = s * x[ix + k] for k < n, n >= 1."""

    def form(emit: Emitter, count: int, x: Any, sign: Any) -> Any:
        return emit.builder.fmul(x, sign)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        write = _elementwise(emit, "copy_signed", [emit.number], emit.number, 1, form)
        builder.call(write, [emit.pointer(x, *values[:2]), emit.pointer(target, *values[2:4]), *values[4:]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(x, whole, target, whole, whole, x.dtype), generate


@intrinsic
def copy_places(typing: Any, i: Any, at: Any, target: Any, to: Any, n: Any) -> Any:
    """target[to + k] = i[at + k] for k < n, n >= 1: indices, as wide as the numbers that they belong to."""

    def form(emit: Emitter, count: int, place: Any) -> Any:
        return place

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, types.float32 if i.dtype == types.int32 else types.float64)
        write = _elementwise(emit, "copy_places", [emit.whole], emit.whole, 0, form)
        arrays = [emit.pointer(a, values[k], values[k + 1], emit.whole) for a, k in ((i, 0), (target, 2))]
        builder.call(write, [*arrays, values[4]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(i, whole, target, whole, whole), generate


@intrinsic
def larger(typing: Any, t: Any, it: Any, shift: Any, target: Any, to: Any, n: Any) -> Any:
    """target[to + k] = max(t[it + k], t[it + k + shift]) for k < n, n >= 1."""

    def form(emit: Emitter, count: int, a: Any, b: Any) -> Any:
        return emit.contest([b], [a])[0]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, t.dtype)
        write = _elementwise(emit, "larger", [emit.number, emit.number], emit.number, 0, form)
        other = builder.add(values[1], values[2])
        sources = [emit.pointer(t, values[0], at) for at in (values[1], other)]
        builder.call(write, [*sources, emit.pointer(target, *values[3:5]), values[5]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(t, whole, whole, target, whole, whole), generate


def _build_contend(emit: Emitter) -> Any:
    """Emit void contend(t, i, best, index, n, taps, step, weight); see :func:`contend`. n >= lanes."""
    pointer, places = emit.number.as_pointer(), emit.whole.as_pointer()
    function, body = emit.function("contend", [pointer, places, pointer, places, I64, I64, I64, emit.whole])
    if body is None:
        return function
    t, i, best, index, n, taps, step, weight = function.args
    builder, count = body.builder, body.lanes
    weights, zero = body.splat(weight, count), body.splat(body.whole(0), count)
    last = builder.sub(n, I64(count))
    entry, rows, done = body.loop()
    k = builder.phi(I64)
    inside = builder.icmp_signed("<", k, last)
    at = builder.select(inside, k, last)  # the last vector overlaps the one before
    before, loop, after = body.loop()
    q, where, plus = builder.phi(I64), builder.phi(I64), builder.phi(zero.type)
    held = [builder.phi(body.none(count).type), builder.phi(zero.type)]
    place = builder.add(body.load(i, where, count, body.whole), plus)
    won = body.contest([body.load(t, where, count), place], held)
    following = builder.add(q, I64(1))
    body.join(q, before, I64(0), loop, following)
    body.join(where, before, at, loop, builder.add(where, step))
    body.join(plus, before, zero, loop, builder.add(plus, weights))
    for phi, first, value in zip(held, (body.none(count), zero), won, strict=True):
        body.join(phi, before, first, loop, value)
    builder.cbranch(builder.icmp_signed("<", following, taps), loop, after)
    builder.position_at_end(after)
    for value, target in zip(won, (best, index), strict=True):
        body.store(value, target, at)
    body.join(k, entry, I64(0), after, builder.add(k, I64(count)))
    builder.cbranch(inside, rows, done)
    builder.position_at_end(done)
    builder.ret_void()
    return function


@intrinsic
def contend(typing: Any, t: Any, i: Any, best: Any, index: Any, n: Any, taps: Any, step: Any, weight: Any) -> Any:
    """best[k] = max over q < taps of t[k + q step], index[k] = i[k + q step] + q weight of the first q that reaches it.

    For k < n, n at least one vector; -inf never wins, which leaves 0.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, t.dtype)
        pointers = [
            emit.pointer(array, value, I64(0), kind)
            for array, value, kind in zip(
                (t, i, best, index), values, (None, emit.whole, None, emit.whole), strict=False
            )
        ]
        builder.call(_build_contend(emit), [*pointers, *values[4:7], emit.as_whole(values[7])])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(t, i, best, index, whole, whole, whole, whole), generate


@intrinsic
def write_maxima(typing: Any, c: Any, ic: Any, y: Any, iy: Any, n: Any, sign: Any, half: Any) -> Any:
    """y[iy + k] = s * (inf if c[ic + k] > half else c[ic + k]) for k < n; half of the largest number is infinite."""

    def form(emit: Emitter, count: int, best: Any, sign: Any, half: Any) -> Any:
        large = emit.splat(ir.Constant(emit.number, math.inf), count)
        best = emit.builder.select(emit.builder.fcmp_ordered(">", best, half), large, best)
        return emit.builder.fmul(best, sign)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, c.dtype)
        write = _elementwise(emit, "write_maxima", [emit.number], emit.number, 2, form)
        builder.call(write, [emit.pointer(c, *values[:2]), emit.pointer(y, *values[2:4]), *values[4:]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(c, whole, y, whole, whole, c.dtype, c.dtype), generate


@intrinsic
def write_winners(typing: Any, c: Any, ic: Any, index: Any, arg: Any, to: Any, n: Any) -> Any:
    """arg[to + k] = index[ic + k] as int32 where c[ic + k] is more than -inf, else -1, for k < n."""

    def form(emit: Emitter, count: int, best: Any, place: Any) -> Any:
        found = emit.builder.fcmp_ordered(">", best, emit.none(count))
        place = emit.builder.select(found, place, emit.splat(emit.whole(-1), count))
        return place if emit.whole == I32 else emit.builder.trunc(place, ir.VectorType(I32, count))

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, c.dtype)
        write = _elementwise(emit, "write_winners", [emit.number, emit.whole], I32, 0, form)
        places = emit.pointer(index, values[2], values[1], emit.whole)
        target = emit.pointer(arg, values[3], values[4], I32)
        builder.call(write, [emit.pointer(c, *values[:2]), places, target, values[5]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(c, whole, index, arg, whole, whole), generate


@intrinsic
def write_gaps(typing: Any, c: Any, ic: Any, second: Any, gap: Any, to: Any, n: Any) -> Any:
    """gap[to + k] = c[ic + k] - second[ic + k], or inf where c is -inf, for k < n."""

    def form(emit: Emitter, count: int, best: Any, other: Any) -> Any:
        large = emit.splat(ir.Constant(emit.number, math.inf), count)
        found = emit.builder.fcmp_ordered(">", best, emit.none(count))
        return emit.builder.select(found, emit.builder.fsub(best, other), large)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, c.dtype)
        write = _elementwise(emit, "write_gaps", [emit.number, emit.number], emit.number, 0, form)
        arrays = [emit.pointer(c, *values[:2]), emit.pointer(second, values[2], values[1])]
        builder.call(write, [*arrays, emit.pointer(gap, *values[3:5]), values[5]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(c, whole, second, gap, whole, whole), generate


def _active(emit: Emitter, x: Any, w: Any, k: Any, count: int, top: Any, eps: Any) -> Any:
    """Which candidates lie within eps of the maximum; a score of -inf is infinitely far away."""
    score = emit.builder.fadd(emit.load(x, k, count), emit.load(w, k, count))
    slack = emit.builder.fsub(emit.splat(top, count), score)
    return emit.builder.fcmp_ordered("<=", slack, emit.splat(eps, count))


WORD = 64
"""Candidates whose activity one word holds, bit by bit."""


def _build_mark(emit: Emitter) -> Any:
    """Emit void mark(x, w, n, top, eps, words): bit k of ``words`` says whether candidate k < n is active."""
    pointer = emit.number.as_pointer()
    function, body = emit.function("mark", [pointer, pointer, I64, *[emit.number] * 2, I64.as_pointer()])
    if body is None:
        return function
    x, w, n, top, eps, words = function.args
    builder = body.builder
    last = builder.gep(words, [builder.lshr(n, I64(6))], inbounds=True)
    rest = builder.alloca(I64)  # what remains beside whole words
    builder.store(I64(0), rest)
    for step, k in _by_vectors(body, n, WORD):
        bits: Any = I64(0) if step == WORD else builder.load(rest)
        count = min(step, body.lanes)
        for part in range(0, step, count):
            at = builder.add(k, I64(part))
            here = builder.bitcast(_active(body, x, w, at, count, top, eps), ir.IntType(count))
            bits = builder.or_(bits, builder.shl(builder.zext(here, I64), builder.and_(at, I64(WORD - 1))))
        if step == WORD:
            builder.store(bits, builder.gep(words, [builder.lshr(k, I64(6))], inbounds=True))
        else:
            builder.store(bits, rest)
    with builder.if_then(builder.icmp_unsigned("!=", builder.and_(n, I64(WORD - 1)), I64(0))):
        builder.store(builder.load(rest), last)
    builder.ret_void()
    return function


@intrinsic
def lowest_bit(typing: Any, word: Any) -> Any:
    """The place of the lowest bit of an int64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, types.float64)
        return emit.intrinsic("llvm.cttz.i64", I64, [I64, I1], [values[0], I1(1)])

    return types.int64(types.int64), generate


def _build_lower(emit: Emitter) -> Any:
    """Emit void lower(x, w, g, c, n, target, scale): g[k] += (s - target) scale and c[k] += 1 where s > target."""
    number, pointer = emit.number, emit.number.as_pointer()
    function, body = emit.function("lower", [*[pointer] * 4, I64, number, number])
    if body is None:
        return function
    x, w, g, c, n, target, scale = function.args
    builder = body.builder
    for count, k in _by_vectors(body, n):
        zero, one = (body.splat(ir.Constant(number, value), count) for value in (0.0, 1.0))
        score = builder.fadd(body.load(x, k, count), body.load(w, k, count))
        above = builder.fsub(score, body.splat(target, count))
        moved = builder.fcmp_ordered(">", above, zero)
        sent = builder.select(moved, builder.fmul(above, body.splat(scale, count)), zero)
        body.store(builder.fadd(body.load(g, k, count), sent), g, k)
        body.store(builder.fadd(body.load(c, k, count), builder.select(moved, one, zero)), c, k)
    builder.ret_void()
    return function


@intrinsic
def mark_active(typing: Any, x: Any, ix: Any, w: Any, iw: Any, n: Any, top: Any, eps: Any, words: Any) -> Any:
    """Bit k of the int64 ``words``: whether the score x + w of candidate k < n lies within eps, finite, of ``top``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        arrays = [emit.pointer(a, *values[k : k + 2]) for a, k in ((x, 0), (w, 2))]
        target = emit.pointer(words, values[7], I64(0), I64)
        builder.call(_build_mark(emit), [*arrays, *values[4:7], target])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(x, whole, w, whole, whole, x.dtype, x.dtype, words), generate


@intrinsic
def lower_active(
    typing: Any, x: Any, ix: Any, w: Any, iw: Any, g: Any, c: Any, to: Any, n: Any, target: Any, scale: Any
) -> Any:
    """g[to + k] += (s - target) scale and c[to + k] += 1 for the candidates k < n with a score s above ``target``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        arrays = [emit.pointer(a, *values[k : k + 2]) for a, k in ((x, 0), (w, 2))]
        targets = [emit.pointer(g, values[4], values[6]), emit.pointer(c, values[5], values[6])]
        builder.call(_build_lower(emit), [*arrays, *targets, *values[7:]])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(x, whole, w, whole, g, c, whole, whole, *[x.dtype] * 2), generate
