"""Windowed operators by their definition: one candidate at a time, in plain Python."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Candidate(NamedTuple):
    score: float
    cell: int  # flat input index of its sample; a constant border lies after all cells
    weight: int  # flat index into b


def inside(i: int, n: int, border: str) -> int | None:
    """The pixel that stands at coordinate i, None for none."""
    if 0 <= i < n:
        return i
    if border == "circular":
        return i % n
    if border == "replicate":
        return min(max(i, 0), n - 1)
    if border == "reflect":
        i %= 2 * (n - 1)
        return i if i < n else 2 * (n - 1) - i
    return None


def extents(shape, window, *, stride=1, dilation=1, padding="same"):
    if padding == "same":
        return [math.ceil(n / stride) for n in shape]
    pad = 0 if padding == "valid" else padding
    return [(n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(shape, window)]


def candidates(f: Tensor, b: Tensor, sign: int, **options) -> list[list[Candidate]]:
    """Candidates of each output of one sample f (channels, *space) with b (out, channels of a group, *window).

    Scores are those of a maximum: for erosions (sign -1) negated. Ordered by rising coordinate.
    """
    border, value, groups = (options.pop(k, d) for k, d in (("border", "neutral"), ("value", 0.0), ("groups", 1)))
    stride, dilation, padding = (options.get(k, d) for k, d in (("stride", 1), ("dilation", 1), ("padding", "same")))
    space, window, number = f.shape[1:], b.shape[2:], torch.arange(f.numel()).view(f.shape)
    weight_number = torch.arange(b.numel()).view(b.shape)
    found = []
    for o, *p in itertools.product(range(b.shape[0]), *map(range, extents(space, window, **options))):
        mine = []
        first_channel = o // (b.shape[0] // groups) * b.shape[1]
        for c, *q in itertools.product(range(b.shape[1]), *map(range, window)):
            # q counts coordinates upwards; a dilation reads its window backwards
            z = tuple(k - 1 - i if sign > 0 else i for i, k in zip(q, window))
            if padding == "same":
                at = [stride * pi - sign * dilation * (zi - k // 2) for pi, zi, k in zip(p, z, window)]
            else:
                at = [stride * pi + dilation * qi - (0 if padding == "valid" else padding) for pi, qi in zip(p, q)]
            at = [inside(i, n, border) for i, n in zip(at, space)]
            w, index = float(b[(o, c, *z)]), int(weight_number[(o, c, *z)])
            if w == -math.inf:
                continue
            if None not in at:
                place = (first_channel + c, *at)
                mine.append(Candidate(sign * float(f[place]) + w, int(number[place]), index))
            elif border == "constant":
                mine.append(Candidate(sign * value + w, f.numel(), index))
        found.append(mine)
    return found


def window_operator(x: Tensor, b: Tensor, sign: int, merge: str = "max", **options) -> Tensor:
    """max_z f(p - z) + b(z) for sign 1, min_z f(p + z) - b(z) for sign -1; x (batch, channels, *space)."""
    if merge == "sum":
        per_group, outs = b.shape[1], b.shape[0] // options.pop("groups", 1)
        total = []
        for o in range(b.shape[0]):
            first = o // outs * per_group
            parts = [
                window_operator(x[:, first + c, None], b[o : o + 1, c, None], sign, **options) for c in range(per_group)
            ]
            total.append(torch.stack(parts).sum(0))
        return torch.cat(total, 1)
    sizes = {name: options[name] for name in ("stride", "dilation", "padding") if name in options}
    size = extents(x.shape[2:], b.shape[2:], **sizes)
    rows = [[max((c.score for c in mine), default=-math.inf) for mine in candidates(f, b, sign, **options)] for f in x]
    return sign * torch.tensor(rows, dtype=x.dtype).view(len(x), b.shape[0], *size)


def pull_back(x: Tensor, b: Tensor, sign: int, gy: Tensor, rule: str, **options) -> tuple[Tensor, Tensor]:
    """Gradients for x and b by a derivative rule's definition, without merge."""
    gx, gb = torch.zeros(len(x), x[0].numel() + 1, dtype=x.dtype), torch.zeros(b.numel(), dtype=b.dtype)
    for sample, f in enumerate(x):
        messages = (sign * gy[sample]).flatten().tolist()
        rows = []
        for mine, u in zip(candidates(f, b, sign, **options), messages, strict=True):
            top = max((c.score for c in mine), default=-math.inf)
            rows.append(([c for c in mine if c.score == top], u))
        opposed = torch.zeros(x[0].numel() + 1, dtype=x.dtype)
        for tied, u in rows:
            for c in tied:
                opposed[c.cell] += max(u, 0.0)
        opposed[-1] = math.inf  # a constant border cannot be raised
        for tied, u in rows:
            if not tied or u == 0:
                continue
            winner = min(tied, key=lambda c: c.cell)
            to_cells = to_weights = [winner] if rule == "first" else tied
            if rule == "bouligand" and u < 0:
                to_cells, to_weights = [min(tied, key=lambda c: float(opposed[c.cell]))], [winner]
            share = u / len(tied) if rule == "uniform" else u
            for c in to_cells:
                gx[sample, c.cell] += share
            for c in to_weights:
                gb[c.weight] += share
    return sign * gx[:, :-1].reshape(x.shape), gb.view(b.shape)


@pytest.fixture(scope="session")
def window_oracle() -> SimpleNamespace:
    """``operator``: values; ``pull_back``: gradients by a derivative rule."""
    return SimpleNamespace(operator=window_operator, pull_back=pull_back)
