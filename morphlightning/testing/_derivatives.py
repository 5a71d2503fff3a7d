"""Checks of derivative rules: the axioms of :class:`morphlightning.interfaces.DerivativeRule`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.geometry import DENSE, Geometry, Window
from morphlightning.ops.policy import Policy
from morphlightning.testing._subject import (
    Skipped,
    Subject,
    is_a_plain_value,
    is_documented,
    is_saved_by_name,
    require_equal,
)


class Case(NamedTuple):
    """One operator call: x (samples, ...), weights and messages, in float64."""

    name: str
    x: Tensor
    w: Tensor
    where: Geometry
    message: Tensor


_PLACES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], Geometry], ...] = (
    ("dense", (6, 5), (4, 5), DENSE),
    ("window", (3, 2, 5, 4), (3, 2, 3, 2), Window((1, 1), (1, 1), (1, 0), (1, 1))),
)


def cases(integers: bool) -> list[Case]:
    """Dense and windowed calls; of small integers, so that ties abound, or of reals, without any."""
    made = []
    for name, x_shape, w_shape, where in _PLACES:
        draw = (lambda shape: torch.randint(-1, 2, shape).double()) if integers else _reals
        x, w = draw(x_shape), draw(w_shape)
        message = torch.randint(-4, 5, where.output_shape(x.shape, w.shape)).double()
        made.append(Case(name, x, w, where, message))
    return made


def pull_back(rule: DerivativeRule, case: Case) -> tuple[Tensor, Tensor]:
    """Gradients for x and w, through the operator itself."""
    x, w = case.x.clone().requires_grad_(), case.w.clone().requires_grad_()
    y = maxplus(x, w, case.where, Policy(rule))
    gx, gw = torch.autograd.grad(y, (x, w), case.message)
    return gx, gw


def scores(case: Case, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """All scores (samples, units, candidates), and the flat input cell of each candidate (-1: none)."""
    cells = torch.arange(math.prod(x.shape[1:]), dtype=torch.float64).view(1, *x.shape[1:])
    if isinstance(case.where, Window):
        (top, left), (bottom, right) = case.where.before, case.where.after
        x, cells = (F.pad(a, (left, right, top, bottom), value=v) for a, v in ((x, -math.inf), (cells, -1.0)))
        x, cells = (_patches(a, w.shape[2:]) for a in (x, cells))
        all_scores = (x[:, None] + w.flatten(1)[:, None]).flatten(1, 2)
        return all_scores, cells.expand(w.shape[0], *cells.shape[1:]).flatten(0, 1)
    return x[:, None] + w, cells.expand(w.shape[0], -1)


def agrees_with_autograd_without_ties(subject: Subject) -> None:
    """Where no maximum is tied, the result is the derivative (torch's, float64), dense and windowed."""
    rule = subject.build()
    for case in cases(integers=False):
        case = _spread(case, rule.eps)
        x, w = case.x.clone().requires_grad_(), case.w.clone().requires_grad_()
        y = scores(case, x, w)[0].amax(-1)
        expected = torch.autograd.grad(y, (x, w), case.message.reshape(y.shape))
        for seen, right, what in zip(pull_back(rule, case), expected, ("x", "w"), strict=True):
            require_equal(seen, right, f"{case.name}: message to {what}", 1e-12)


def lone_candidate_gets_the_message(subject: Subject) -> None:
    """In an active set of one, cell and weight get exactly the message."""
    u = torch.tensor([1.5, -0.1, 3.0], dtype=torch.float64)
    to_cells, to_taps = subject.build().route(_chunk([0, 1, 2], [True] * 3, 3), u)
    require_equal(to_cells, u, "to cells")
    require_equal(to_taps, u, "to weights")


def first_takes_all(subject: Subject) -> None:
    """A rule with support 'first' sends the whole message to the winner, for its route() may never be called."""
    rule = subject.build()
    if rule.support != "first":
        raise Skipped("support is 'active'")
    u = torch.tensor([2.0, -3.0], dtype=torch.float64)
    winner = torch.tensor([True, False, False, True])
    for seen in rule.route(_chunk([0, 0, 1, 1], winner.tolist(), 2), u):
        require_equal(seen, torch.where(winner, u[torch.tensor([0, 0, 1, 1])], 0), "shares")


def stays_in_the_active_set(subject: Subject) -> None:
    """On data full of ties, a message reaches only candidates within eps of the maximum."""
    rule = subject.build()
    for case in cases(integers=True):
        all_scores, cells = scores(case, case.x, case.w)
        active = all_scores >= all_scores.amax(-1, keepdim=True) - rule.eps
        taps = math.prod(case.w.shape[1:])
        samples, units = active.shape[:2]
        for sample, unit in zip(range(samples), range(0, units, max(1, units // samples)), strict=False):
            message = torch.zeros(samples, units, dtype=torch.float64)
            message[sample, unit] = -2.0
            gx, gw = pull_back(rule, case._replace(message=message.view_as(case.message)))
            may_x, may_w = torch.zeros(gx.numel(), dtype=torch.bool), torch.zeros(gw.numel(), dtype=torch.bool)
            hit = active[sample, unit].nonzero()[:, 0]
            may_x[sample * gx[0].numel() + cells[unit][hit].long()] = True
            may_w[unit // (units // case.w.shape[0]) * taps + hit] = True
            for seen, may, what in ((gx, may_x, "input"), (gw, may_w, "weight")):
                outside = int((seen.flatten()[~may] != 0).sum())
                assert outside == 0, f"{case.name}: {outside} {what}s outside the active set receive something"


def is_positively_homogeneous(subject: Subject) -> None:
    """Twice the message gives twice the result, no message gives nothing."""
    rule = subject.build()
    for case in cases(integers=True):
        once = pull_back(rule, case)
        for factor in (2.0, 0.0):
            scaled = pull_back(rule, case._replace(message=factor * case.message))
            for seen, base, what in zip(scaled, once, ("x", "w"), strict=True):
                require_equal(seen, factor * base, f"{case.name}: {factor} times the message, to {what}", 1e-12)


def ignores_missing_weights(subject: Subject) -> None:
    """Weights and inputs of -inf receive nothing, and nothing becomes NaN, not even where a whole row is -inf."""
    rule = subject.build()
    for case in cases(integers=True):
        x, w = case.x.clone(), case.w.clone()
        w.view(-1)[::3] = -math.inf
        w[0] = -math.inf
        x.view(-1)[::4] = -math.inf
        gx, gw = pull_back(rule, case._replace(x=x, w=w))
        assert not gx.isnan().any(), f"{case.name}: NaN in the message to x"
        assert not gw.isnan().any(), f"{case.name}: NaN in the gradient of w"
        assert not gw[w == -math.inf].any(), f"{case.name}: a missing weight receives something"
        assert not gx[x == -math.inf].any(), f"{case.name}: an input of -inf receives something"


def does_not_depend_on_the_order_of_the_batch(subject: Subject) -> None:
    """Permuted samples give permuted messages and the same gradient for the weights."""
    rule = subject.build()
    for case in cases(integers=True):
        gx, gw = pull_back(rule, case)
        order = torch.randperm(len(case.x))
        permuted = pull_back(rule, case._replace(x=case.x[order], message=case.message[order]))
        require_equal(permuted[0], gx[order], f"{case.name}: message to x", 1e-12)
        require_equal(permuted[1], gw, f"{case.name}: message to w", 1e-12)


def is_deterministic(subject: Subject) -> None:
    """The same call gives the same bits."""
    rule = subject.build()
    for case in cases(integers=True):
        for one, other in zip(pull_back(rule, case), pull_back(rule, case), strict=True):
            require_equal(one, other, case.name)


def keeps_the_dtype(subject: Subject) -> None:
    """Shares have the message's dtype, in float32 and float64."""
    rule = subject.build()
    for dtype in (torch.float32, torch.float64):
        chunk = _chunk([0, 0, 1], [True, False, True], 2)
        for share in rule.route(chunk._replace(slack=chunk.slack.to(dtype)), torch.ones(2, dtype=dtype)):
            assert share.dtype == dtype, f"{share.dtype} for messages in {dtype}"
            assert share.shape == (3,), f"shares of shape {tuple(share.shape)} for 3 pairs"


CHECKS = (
    is_documented,
    is_a_plain_value,
    is_saved_by_name,
    agrees_with_autograd_without_ties,
    lone_candidate_gets_the_message,
    first_takes_all,
    stays_in_the_active_set,
    is_positively_homogeneous,
    ignores_missing_weights,
    does_not_depend_on_the_order_of_the_batch,
    is_deterministic,
    keeps_the_dtype,
)


def _reals(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _spread(case: Case, eps: float) -> Case:
    """The case, scaled until every maximum stands clear of its runner-up by more than eps."""
    best = scores(case, case.x, case.w)[0].topk(2, -1).values
    scale = max(1.0, 2 * eps / float((best[..., 0] - best[..., 1]).min()))
    return case._replace(x=scale * case.x, w=scale * case.w)


def _patches(x: Tensor, window: torch.Size) -> Tensor:
    """(n, c, h, w) as (n, positions, c * window)."""
    rows = x.unfold(2, window[0], 1).unfold(3, window[1], 1)
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _chunk(owner: list[int], winner: list[bool], rows: int) -> ActiveChunk:
    """Active sets with all scores equal; row r is output r of sample 0."""
    owners = torch.tensor(owner)
    return ActiveChunk(
        sample=torch.zeros(rows, dtype=torch.int64),
        unit=torch.arange(rows),
        owner=owners,
        cell=torch.arange(len(owner)),
        tap=torch.arange(len(owner)),
        slack=torch.zeros(len(owner), dtype=torch.float64),
        winner=torch.tensor(winner),
        size=torch.bincount(owners, minlength=rows),
    )
