"""Settings of a Trainer under which heuristics that take a finite step would take another one."""

from __future__ import annotations

from torch import nn

from morphlightning.interfaces import TrainerFacts
from morphlightning.layers import sites


def refused_heuristics(module: nn.Module, facts: TrainerFacts) -> list[str]:
    """Why heuristics that are not homogeneous cannot act in ``module`` under these settings; empty where they can."""
    reasons: dict[str, None] = {}
    for _, site in sites(module):
        policy = site.pipeline.policy
        for heuristic in (policy.message, *policy.routes, *site.updates):
            if heuristic is None or heuristic.homogeneous:
                continue
            what = f"{type(heuristic).__name__} takes a finite step, "
            if facts.precision == "16-mixed":
                reasons[f"{what}and precision 16-mixed scales its message; use bf16-mixed or 32-true"] = None
            expected = getattr(heuristic, "accumulation", 1)
            if facts.accumulate_grad_batches != expected:
                reasons[
                    f"{what}and accumulate_grad_batches={facts.accumulate_grad_batches} divides its message, "
                    f"where it expects accumulation={expected}; set the same number in both"
                ] = None
    return list(reasons)
