"""Training steps of a dense dilation under each rule and heuristic: without ties, with many, and with near ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from cases import Candidate, Case, Setting, ours
from dense import LEVELS, TINY, linear, name_of, operands, tied
from torch import Tensor

from morphlightning.functional.dense import max_plus
from morphlightning.pipeline import Pipeline

SHAPES = ((256, 256, 784),)
EPS = 0.02
"""What counts as a tie between values in [0, 1]."""
RULES = ("first", "uniform", "bouligand", "soft")
HEURISTICS = ("best", "adjoint", "chebyshev", "target", "projection", "lower_only")


def policies(setting: Setting) -> Iterator[Case]:
    """Each kind of data against a linear layer."""
    for shape in setting.shapes(SHAPES, TINY):
        x, w = operands(setting, *shape)
        yield policy_case(setting, x, w, 0.0, "no ties")
        whole = [setting.fresh((t * LEVELS).round() / LEVELS) for t in (x, w)]
        yield policy_case(setting, *whole, 0.0, f"{tied(*whole):.0%} tied")
        inputs, weights = (setting.fresh(torch.rand_like(t) * scale) for t, scale in ((x, 1.0), (w, 0.1)))
        yield policy_case(setting, inputs, weights, EPS, f"{near(inputs, weights):.0%} within {EPS}")


def policy_case(setting: Setting, x: Tensor, w: Tensor, eps: float, data: str) -> Case:
    candidates = [linear(x, w)]
    for rule in RULES:
        has_eps = eps and rule in ("uniform", "bouligand")
        candidates += under(setting, rule, {"name": rule, "eps": eps} if has_eps else rule, "plain", x, w)
    for heuristic in HEURISTICS:
        has_eps = eps and heuristic in ("best", "adjoint", "chebyshev")
        candidates += under(
            setting, heuristic, "first", {"name": heuristic, "eps": eps} if has_eps else heuristic, x, w
        )
    ours_first = [*candidates[1:], candidates[0]]
    name = f"{name_of(x.shape[0], w.shape[0], x.shape[1])}, {data}"
    return Case(name, "nn.Linear", ours_first, x.numel() * w.shape[0], modes=("step",))


def under(setting: Setting, name: str, derivative: Any, heuristic: Any, x: Tensor, w: Tensor) -> list[Candidate]:
    """A dilation under a policy."""
    policy = Pipeline.parse(derivative, heuristic).policy
    return ours(setting, f"'{name}'", lambda: max_plus(x, w, policy), x, w)


@torch.no_grad()
def near(x: Tensor, w: Tensor) -> float:
    """The share of outputs with a runner-up within EPS of the maximum."""
    count = sum(int((row + w).topk(2).values.diff()[:, 0].ge(-EPS).sum()) for row in x)
    return count / (x.shape[0] * w.shape[0])
