r"""Fewer kinks: minimise :math:`\frac12 \|n - c\|^2 + w \totalk |s_k - s_{k-1}|` over splines with slopes s, exactly.

With q_k the sum of c - n up to knot k, and U_0 = 0, U_{k+1} = U_k + (t_{k+1} - t_k) q_k, n is the minimiser where
|U_k| <= w at every inner knot and, where n has a kink, U_k = w times the kink's sign. Given the kinks and their signs,
n interpolates its values there, which solve a tridiagonal system (the hat functions' Gram matrix, well conditioned).
Guessed kinks and signs are exchanged, all wrong ones at once, until none is wrong: then the guess is the solution.
Where they do not become fewer, the dual, a least-squares problem in U with bounds, is descended from there, one bound
at a time, which ends.

Source: block pivoting (Júdice and Pires 1994), bounded least squares (Stark and Parker 1995); the system and U derived
here.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops.cpu.workers import KernelError, Worker, kernel, next_task, numbers, slots_of

_PATIENCE = 5
"""Exchanges in a row that may fail to make wrong kinks fewer."""
_ROUNDING = 1e-13


@kernel
def _interpolant(t, c, weight, sign, n, nodes, diagonal, beside, value):
    """Write to ``n`` the best spline with kinks of the given signs (0 for none) and nowhere else."""
    last = len(c) - 1
    m = 0
    for k in range(last + 1):
        if k == 0 or k == last or sign[k] != 0:
            nodes[m] = k
            diagonal[m] = beside[m] = value[m] = 0.0
            m += 1
    for i in range(m - 1):
        a, b = nodes[i], nodes[i + 1]
        width = t[b] - t[a]
        for k in range(a, b if i < m - 2 else b + 1):  # each knot once
            f = (t[k] - t[a]) / width
            diagonal[i] += (1 - f) * (1 - f)
            beside[i] += f * (1 - f)
            diagonal[i + 1] += f * f
            value[i] += (1 - f) * c[k]
            value[i + 1] += f * c[k]
        left, right = (sign[a] if i > 0 else 0), (sign[b] if i < m - 2 else 0)
        pull = weight * (right - left) / width
        value[i] -= pull
        value[i + 1] += pull
    for i in range(1, m):
        factor = beside[i - 1] / diagonal[i - 1]
        diagonal[i] -= factor * beside[i - 1]
        value[i] -= factor * value[i - 1]
    value[m - 1] /= diagonal[m - 1]
    for i in range(m - 2, -1, -1):
        value[i] = (value[i] - beside[i] * value[i + 1]) / diagonal[i]
    for i in range(m - 1):
        a, b = nodes[i], nodes[i + 1]
        for k in range(a, b):
            n[k] = value[i] + (value[i + 1] - value[i]) * ((t[k] - t[a]) / (t[b] - t[a]))
    n[last] = value[m - 1]


@kernel
def _certify(t, c, weight, sign, n, u, slack):
    """Write U of ``n``, and how far rounding may have moved it; return how far rounding may have moved ``n``."""
    size, q, total, travelled = 0.0, 0.0, 0.0, 0.0
    for k in range(len(c)):
        size = max(size, abs(c[k]), abs(n[k]))
    for k in range(1, len(c) - 1):
        before = t[k] - t[k - 1]
        q += c[k - 1] - n[k - 1]
        total += before * q
        travelled += before * k
        if sign[k] != 0:
            total, travelled = weight * sign[k], 0.0  # what it is, without the rounding so far
        u[k], slack[k] = total, _ROUNDING * (weight + size * travelled)
    return _ROUNDING * size


@kernel
def _against(t, n, sign, k, rounding):
    """By how much the kink at knot k bends against its sign, more than by rounding; at most 0 where it does not."""
    before, after = t[k] - t[k - 1], t[k + 1] - t[k]
    bend = (n[k + 1] - n[k]) / after - (n[k] - n[k - 1]) / before
    return -bend * sign[k] - rounding * (1 / before + 1 / after)


@kernel
def _exchange(t, weight, n, sign, u, slack, rounding):
    """Correct every wrong sign; return how many there were."""
    count = 0
    for k in range(1, len(n) - 1):
        if sign[k] != 0:
            if _against(t, n, sign, k, rounding) > 0:
                sign[k] = 0
                count += 1
        elif abs(u[k]) > weight + slack[k]:
            sign[k] = 1 if u[k] > 0 else -1
            count += 1
    return count


@kernel
def _advance(weight, sign, u, aim, slack):
    """Go from U towards ``aim`` until a bound is met, if one is; return the knot that meets it, or 0."""
    step, hit = 1.0, 0
    for k in range(1, len(u) - 1):
        if sign[k] == 0 and abs(aim[k]) > weight + slack[k]:
            bound = weight if aim[k] > 0 else -weight
            share = (bound - u[k]) / (aim[k] - u[k])
            if share < step:
                step, hit = share, k
    for k in range(1, len(u) - 1):
        if sign[k] == 0:
            u[k] = min(max(u[k] + step * (aim[k] - u[k]), -weight), weight)
    return hit


@kernel
def _wrongest(t, n, sign, rounding):
    """The kink that bends against its sign the most, or 0."""
    worst, most = 0, 0.0
    for k in range(1, len(n) - 1):
        if sign[k] != 0:
            by = _against(t, n, sign, k, rounding)
            if by > most:
                worst, most = k, by
    return worst


@kernel
def _solve(t, c, weight, n, sign, nodes, work):
    """Write the minimiser to ``n``; return whether it is certain."""
    diagonal, beside, value, u, aim, slack = work
    sign[:] = 0
    for k in range(1, len(c) - 1):
        bend = (c[k + 1] - c[k]) / (t[k + 1] - t[k]) - (c[k] - c[k - 1]) / (t[k] - t[k - 1])
        sign[k] = np.sign(bend)
    fewest, patience = len(c), _PATIENCE
    while patience >= 0:
        _interpolant(t, c, weight, sign, n, nodes, diagonal, beside, value)
        rounding = _certify(t, c, weight, sign, n, u, slack)
        count = _exchange(t, weight, n, sign, u, slack, rounding)
        if count == 0:
            return True
        patience = _PATIENCE if count < fewest else patience - 1
        fewest = min(fewest, count)
    for k in range(1, len(c) - 1):
        u[k] = weight * sign[k] if sign[k] != 0 else min(max(u[k], -weight), weight)
    for _ in range(20 * len(c)):
        _interpolant(t, c, weight, sign, n, nodes, diagonal, beside, value)
        rounding = _certify(t, c, weight, sign, n, aim, slack)
        k = _advance(weight, sign, u, aim, slack)
        if k > 0:
            sign[k] = 1 if aim[k] > 0 else -1
            continue
        k = _wrongest(t, n, sign, rounding)
        if k == 0:
            return True
        sign[k] = 0
    return False


def _rows(args):
    s = slots_of(args)
    rows, knots = s[2], s[3]
    t, c = numbers(s[4], rows * knots, np.float64), numbers(s[5], rows * knots, np.float64)
    weight, n = numbers(s[6], rows, np.float64), numbers(s[7], rows * knots, np.float64)
    certain = numbers(s[8], rows, np.uint8)
    sign, nodes, work = np.empty(knots, np.int8), np.empty(knots, np.int64), np.empty((6, knots))
    task = next_task(s)
    while task >= 0:
        of = slice(task * knots, task * knots + knots)
        certain[task] = _solve(t[of], c[of], weight[task], n[of], sign, nodes, work)
        task = next_task(s)


_WORKER = Worker(_rows)


def solve(t: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The minimisers (rows, K) for knots and values (rows, K) and weights (rows,), float64, and which are certain.

    Compiled where the backend ``numba`` is in use, else the same lines interpreted.
    """
    t, c, weight = t.contiguous(), c.contiguous(), weight.contiguous()
    n, certain = torch.empty_like(c), torch.zeros(len(c), dtype=torch.bool)
    if backends.current("cpu") == "numba":
        try:
            _WORKER(len(c), c.numel() * 64, len(c), c.shape[1], t, c, weight, n, certain)
        except KernelError as error:
            backends.fall_back("numba", str(error))
        else:
            return n, certain
    plain: dict[str, Any] = dict(globals())
    for part in (_interpolant, _certify, _against, _exchange, _advance, _wrongest, _solve):
        plain[part.__name__] = FunctionType(part.py_func.__code__, plain)
    knots = c.shape[1]
    scratch = np.empty(knots, np.int8), np.empty(knots, np.int64), np.empty((6, knots))
    for row in range(len(c)):
        of = (part[row].numpy() for part in (t, c, weight, n))
        certain[row] = bool(plain["_solve"](*of, *scratch))
    return n, certain
