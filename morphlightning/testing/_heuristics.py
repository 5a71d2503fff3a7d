"""Checks of heuristics, by the stage that they declare."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from morphlightning import registry
from morphlightning.interfaces import DerivativeRule, Heuristic
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.policy import Policy
from morphlightning.ops.statistics import gap_histogram
from morphlightning.testing._derivatives import Case, cases
from morphlightning.testing._subject import (
    Skipped,
    Subject,
    is_a_plain_value,
    is_documented,
    is_saved_by_name,
    require_equal,
)


def update_keeps_the_shape(subject: Subject) -> None:
    """update() returns a finite tensor of the weight's shape, from the statistics it declares alone (float64)."""
    heuristic = _of_stage(subject, "update")
    for dtype in (torch.float32, torch.float64):
        weight, grad, statistics = _update_arguments(heuristic, dtype)
        seen = heuristic.update(weight, grad, statistics)
        assert seen.shape == weight.shape, f"shape {tuple(seen.shape)} for a weight of {tuple(weight.shape)}"
        assert seen.isfinite().all(), "not finite; the weight had missing (-inf) and untouched (count 0) entries"


def update_changes_no_argument(subject: Subject) -> None:
    """update() leaves weight, gradient and statistics as they are."""
    heuristic = _of_stage(subject, "update")
    weight, grad, statistics = _update_arguments(heuristic)
    before = [a.clone() for a in (weight, grad, *statistics.values())]
    heuristic.update(weight, grad, statistics)
    for name, old, new in zip(
        ("weight", "grad", *statistics), before, (weight, grad, *statistics.values()), strict=True
    ):
        require_equal(new, old, name)


def update_is_deterministic(subject: Subject) -> None:
    """update() is a function of its arguments: the same ones give the same bits, so that processes stay equal."""
    heuristic = _of_stage(subject, "update")
    first, second = (heuristic.update(*_update_arguments(heuristic)) for _ in range(2))
    require_equal(second, first, "two calls")


def message_changes_the_message_alone(subject: Subject) -> None:
    """message() keeps shape and dtype of the message, finite, and leaves the weights' gradient alone."""
    heuristic = _of_stage(subject, "message")
    for case in cases(integers=True):
        gx, gw = _pull_back(case, Policy(_first(), message=heuristic))
        assert gx.isfinite().all(), f"{case.name}: the message is not finite"
        require_equal(gw, _pull_back(case, Policy(_first()))[1], f"{case.name}: gradient of the weights")


def route_changes_the_weights_alone(subject: Subject) -> None:
    """route() sends finite numbers, none to missing weights, and leaves the message to the inputs alone."""
    heuristic = _of_stage(subject, "route")
    for case in cases(integers=True):
        w = case.w.clone()
        w.view(-1)[::3] = -math.inf
        case = case._replace(w=w)
        gx, gw = _pull_back(case, Policy(_first(), routes=(heuristic,)))
        assert gw.isfinite().all(), f"{case.name}: gradient of the weights not finite"
        assert not gw[w == -math.inf].any(), f"{case.name}: a missing weight receives something"
        require_equal(gx, _pull_back(case, Policy(_first()))[0], f"{case.name}: message to the inputs", 1e-12)


def acts_deterministically_inside_backward(subject: Subject) -> None:
    """A heuristic of stage message or route gives the same bits for the same call."""
    heuristic = subject.build()
    if heuristic.stage == "update":
        raise Skipped("stage is 'update'")
    inside = {"message": heuristic} if heuristic.stage == "message" else {"routes": (heuristic,)}
    for case in cases(integers=True):
        runs = [_pull_back(case, Policy(_first(), **inside)) for _ in range(2)]
        for one, other in zip(*runs, strict=True):
            require_equal(other, one, case.name)


CHECKS = (
    is_documented,
    is_a_plain_value,
    is_saved_by_name,
    update_keeps_the_shape,
    update_changes_no_argument,
    update_is_deterministic,
    message_changes_the_message_alone,
    route_changes_the_weights_alone,
    acts_deterministically_inside_backward,
)


def _of_stage(subject: Subject, stage: str) -> Heuristic:
    heuristic: Heuristic = subject.build()
    if heuristic.stage != stage:
        raise Skipped(f"stage is {heuristic.stage!r}")
    return heuristic


def _update_arguments(
    heuristic: Heuristic, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A weight with a missing entry, its gradient, and the statistics that the heuristic declares."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 5, generator=draw).to(dtype)
    weight[1, 2] = -math.inf
    count = torch.randint(0, 4, (4, 5), generator=draw).double()
    count[1, 2] = 0
    grad = torch.where(count > 0, torch.randn(4, 5, generator=draw).to(dtype), 0)
    gaps = gap_histogram(torch.ones(6, 4), torch.zeros(6, 4), torch.rand(6, 4, generator=draw).double())
    samples, lr = torch.tensor([6.0, 0.1], dtype=torch.float64)
    available = {"count": count, "gaps": gaps, "lr": lr, "samples": samples}
    return weight, grad, {name: available[name] for name in sorted(heuristic.needs)}


def _first() -> DerivativeRule:
    rule: DerivativeRule = registry.build("derivatives", "morphlightning:first")
    return rule


def _pull_back(case: Case, policy: Policy) -> tuple[Tensor, Tensor]:
    x, w = case.x.clone().requires_grad_(), case.w.clone().requires_grad_()
    gx, gw = torch.autograd.grad(maxplus(x, w, case.where, policy), (x, w), case.message)
    return gx, gw
