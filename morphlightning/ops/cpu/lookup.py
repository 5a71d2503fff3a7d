"""Linear splines of neighbouring numbers, by vectors whose tables lie in registers.

A look-up by address is a load for each number; a permutation of two registers looks up sixteen numbers among 32 entries
at once. Up to 128 pieces fit that way, which takes AVX-512 and float32. Limit: two instructions of look-up for each
32 entries, and for free knots a binary search, a look-up for each bit.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types

from morphlightning.ops.cpu.simd import FEATURES, I32, I64, Emitter, intrinsic

LEFT, STEP, SLOPE, KNOT, WIDTH, INNER = range(6)
"""Rows of the table of one spline: of each piece the value at its left end, the rise, the slope and, where knots are
free, the left end and the length; and the inner knots, followed by NaN, which no number reaches."""
ENTRIES = (32, 64, 128)
"""Entries of a row of the table."""
AVAILABLE = bool(FEATURES.get("avx512f"))
VALUE, RISE, PULL = range(3)
REPLICAS = 8
"""Sums that neighbours add to in turn: to add to one place twice in a row has to wait."""

_LANES = 16
_FLOATS, _WHOLES = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(I32, _LANES)


class _Spline:
    """Emits look-ups in the table of one spline at vectors of numbers."""

    def __init__(self, emit: Emitter, entries: int, free: bool, table: Any, place: tuple[Any, Any, Any]) -> None:
        self.emit, self.builder, self.entries, self.free = emit, emit.builder, entries, free
        rows = (LEFT, STEP, SLOPE, *((KNOT, WIDTH, INNER) if free else ()))
        self.rows = {
            row: [emit.load(table, I64(row * entries + k), _LANES) for k in range(0, entries, _LANES)] for row in rows
        }
        self.low, self.inverse, self.last = (emit.splat(number, _LANES) for number in place)
        if free:  # the first bits of the search compare with the same few knots
            ends = range(31, entries - 1, 32)
            self.ends = [emit.splat(self._entry(table, INNER * entries + k), _LANES) for k in ends]

    def _entry(self, table: Any, k: int) -> Any:
        return self.builder.load(self.builder.gep(table, [I64(k)], inbounds=True), align=self.emit.bytes)

    def whole(self, number: int) -> Any:
        return ir.Constant(_WHOLES, [number] * _LANES)

    def look_up(self, row: int, index: Any) -> Any:
        """The entries of a row at 16 places: the halves of the row by the highest bit, its halves by the next, ..."""
        name, found = "llvm.x86.avx512.vpermi2var.ps.512", self.rows[row]
        kinds = [_FLOATS, _WHOLES, _FLOATS]
        found = [
            self.emit.intrinsic(name, _FLOATS, kinds, [found[k], index, found[k + 1]]) for k in range(0, len(found), 2)
        ]
        bit = 32
        while len(found) > 1:
            upper = self.builder.icmp_signed("!=", self.builder.and_(index, self.whole(bit)), self.whole(0))
            found = [self.builder.select(upper, found[k + 1], found[k]) for k in range(0, len(found), 2)]
            bit *= 2
        return found[0]

    def locate(self, x: Any) -> tuple[Any, Any]:
        """The piece of each number, and its position from 0 to 1 between the ends; NaN lies in piece 0."""
        builder = self.builder
        if self.free:
            index = self.whole(0)
            for end in self.ends:
                index = self._advance(index, end, x, 32)
            for bit in (16, 8, 4, 2, 1):
                index = self._advance(index, self.look_up(INNER, builder.add(index, self.whole(bit - 1))), x, bit)
            return index, builder.fdiv(builder.fsub(x, self.look_up(KNOT, index)), self.look_up(WIDTH, index))
        zero = ir.Constant(_FLOATS, [0.0] * _LANES)
        position = builder.fmul(builder.fsub(x, self.low), self.inverse)
        inside = builder.select(builder.fcmp_ordered(">", position, zero), position, zero)
        inside = builder.select(builder.fcmp_ordered("<", inside, self.last), inside, self.last)
        index = builder.fptosi(inside, _WHOLES)
        return index, builder.fsub(position, builder.sitofp(index, _FLOATS))

    def _advance(self, index: Any, knot: Any, x: Any, by: int) -> Any:
        reached = self.builder.fcmp_ordered("<=", knot, x)
        return self.builder.select(reached, self.builder.add(index, self.whole(by)), index)

    def fraction_and_step(self, index: Any, fraction: Any) -> tuple[Any, Any]:
        """The position, 0 for an infinite number on a level piece since 0 * inf would be NaN, and the rise."""
        builder, step = self.builder, self.look_up(STEP, index)
        size = self.emit.intrinsic("llvm.fabs.v16f32", _FLOATS, [_FLOATS], [fraction])
        infinite = builder.fcmp_ordered("==", size, ir.Constant(_FLOATS, [math.inf] * _LANES))
        zero = ir.Constant(_FLOATS, [0.0] * _LANES)
        level = builder.and_(infinite, builder.fcmp_ordered("==", step, zero))
        return builder.select(level, zero, fraction), step

    def value(self, x: Any) -> Any:
        index, fraction = self.locate(x)
        fraction, step = self.fraction_and_step(index, fraction)
        return self.builder.fadd(self.look_up(LEFT, index), self.builder.fmul(step, fraction))

    def rise(self, x: Any, index: Any) -> Any:
        """The slope; NaN for NaN."""
        return self.builder.select(self.builder.fcmp_ordered("ord", x, x), self.look_up(SLOPE, index), x)


def _build_row(emit: Emitter, what: int, entries: int, free: bool) -> Any:
    """Emit void row(x, y, n, table, low, inverse, last): y may be x; n >= 16."""
    number = emit.number
    pointer = number.as_pointer()
    name = f"spline_{('value', 'rise')[what]}_{entries}_{free}"
    function, body = emit.function(name, [pointer, pointer, I64, pointer, number, number, number], alias=True)
    if body is None:
        return function
    x, y, n, table, *place = function.args
    spline, builder = _Spline(body, entries, free, table, tuple(place)), body.builder

    def at(k: Any) -> Any:
        numbers = body.load(x, k, _LANES)
        return spline.value(numbers) if what == VALUE else spline.rise(numbers, spline.locate(numbers)[0])

    end = builder.sub(n, I64(_LANES))
    last = at(end)  # which overlaps the one before: read before that is written
    with builder.if_then(builder.icmp_signed(">", end, I64(0))):
        entry, loop, done = body.loop()
        k = builder.phi(I64)
        body.store(at(k), y, k)
        following = builder.add(k, I64(_LANES))
        body.join(k, entry, I64(0), loop, following)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
    body.store(last, y, end)
    builder.ret_void()
    return function


def _build_pull(emit: Emitter, entries: int, free: bool) -> Any:
    """Emit void pull(x, g, gx, places, pairs, n, table, low, inverse, last): nothing overlaps; n >= 16.

    gx is g times the slope; pairs get g and g times the position in the piece, to be added to the pair of sums at
    ``places``, which belong to the piece and one of the REPLICAS.
    """
    number, pointer = emit.number, emit.number.as_pointer()
    kinds = [pointer, pointer, pointer, I32.as_pointer(), pointer, I64, pointer, number, number, number]
    function, body = emit.function(f"spline_pull_{entries}_{free}", kinds)
    if body is None:
        return function
    x, g, gx, places, pairs, n, table, *place = function.args
    spline, builder = _Spline(body, entries, free, table, tuple(place)), body.builder
    replica = ir.Constant(_WHOLES, [lane % REPLICAS * entries for lane in range(_LANES)])
    entry, loop, done = body.loop()
    k, end = builder.phi(I64), builder.sub(n, I64(_LANES))
    inside = builder.icmp_signed("<", k, end)
    at = builder.select(inside, k, end)
    numbers, pull = body.load(x, at, _LANES), body.load(g, at, _LANES)
    index, fraction = spline.locate(numbers)
    body.store(builder.fmul(pull, spline.rise(numbers, index)), gx, at)
    body.store(builder.add(index, replica), places, at)
    right = builder.fmul(pull, spline.fraction_and_step(index, fraction)[0])
    for half in range(2):
        both = [lane + 16 * side for lane in range(8 * half, 8 * half + 8) for side in range(2)]
        pair = builder.shuffle_vector(pull, right, ir.Constant(_WHOLES, both))
        body.store(pair, pairs, builder.add(builder.mul(at, I64(2)), I64(_LANES * half)))
    body.join(k, entry, I64(0), loop, builder.add(k, I64(_LANES)))
    builder.cbranch(inside, loop, done)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _dispatch(builder: Any, variant: Any, builds: dict[int, Any], arguments: list[Any]) -> None:
    """Call the function with the number ``variant``."""
    after = builder.function.append_basic_block("after")
    switch = builder.switch(variant, after)
    for key, build in builds.items():
        block = builder.function.append_basic_block("case")
        switch.add_case(I64(key), block)
        builder.position_at_end(block)
        builder.call(build(), arguments)
        builder.branch(after)
    builder.position_at_end(after)


def _sizes(dtype: types.Float) -> tuple[int, ...]:
    """The sizes of tables that fit into registers of this machine."""
    return ENTRIES if AVAILABLE and dtype == types.float32 else ()


def variant_of(entries: int, free: bool, what: int = VALUE) -> int:
    """The number of a form: what it computes, how large its table is, how its knots lie."""
    return what * 1024 + entries * 2 + free


@intrinsic
def look_up_row(typing: Any, x: Any, ix: Any, y: Any, iy: Any, n: Any, table: Any, it: Any,
                variant: Any, low: Any, inverse: Any, last: Any) -> Any:  # fmt: skip
    """Write to y[iy:] the values or slopes at x[ix : ix + n] of the spline whose table begins at table[it]; n >= 16."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        source, target = emit.pointer(x, values[0], values[1]), emit.pointer(y, values[2], values[3])
        arguments = [source, target, values[4], emit.pointer(table, values[5], values[6]), *values[8:]]
        builds = {
            variant_of(entries, free, what): lambda e=entries, f=free, w=what: _build_row(emit, w, e, f)
            for what in (VALUE, RISE) for entries in _sizes(x.dtype) for free in (False, True)
        }  # fmt: skip
        _dispatch(builder, values[7], builds, arguments)
        return context.get_dummy_value()

    return types.void(x, whole, y, whole, whole, table, whole, whole, x.dtype, x.dtype, x.dtype), generate


@intrinsic
def pull_row(typing: Any, x: Any, ix: Any, g: Any, ig: Any, gx: Any, igx: Any, places: Any, pairs: Any, n: Any,
             table: Any, it: Any, variant: Any, low: Any, inverse: Any, last: Any) -> Any:  # fmt: skip
    """Write gx, the places of sums and the pairs to add there, for x[ix : ix + n] and g[ig : ig + n]; n >= 16."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, x.dtype)
        read = [emit.pointer(x, values[0], values[1]), emit.pointer(g, values[2], values[3])]
        written = [
            emit.pointer(gx, values[4], values[5]), emit.pointer(places, values[6], I64(0), I32),
            emit.pointer(pairs, values[7], I64(0)),
        ]  # fmt: skip
        arguments = [*read, *written, values[8], emit.pointer(table, values[9], values[10]), *values[12:]]
        builds = {
            variant_of(entries, free): lambda e=entries, f=free: _build_pull(emit, e, f)
            for entries in _sizes(x.dtype) for free in (False, True)
        }  # fmt: skip
        _dispatch(builder, values[11], builds, arguments)
        return context.get_dummy_value()

    arrays = (x, whole, g, whole, gx, whole, places, pairs, whole, table, whole, whole)
    return types.void(*arrays, x.dtype, x.dtype, x.dtype), generate


@intrinsic
def add_pair(typing: Any, sums: Any, at: Any, pairs: Any, j: Any) -> Any:
    """Add pair j to pair ``at`` of the sums, as one vector of two."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, sums.dtype)
        to, source = emit.pointer(sums, values[0], I64(0)), emit.pointer(pairs, values[2], I64(0))
        at, j = (builder.mul(value, I64(2)) for value in (values[1], values[3]))
        emit.store(builder.fadd(emit.load(to, at, 2), emit.load(source, j, 2)), to, at)
        return context.get_dummy_value()

    return types.void(sums, types.int64, pairs, types.int64), generate
