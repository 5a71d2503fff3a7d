"""One step of the meta-algorithm: the best multiple of a direction, appended as a slice."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.guarantees.optimality.homogeneity import Parameters
from morphlightning.guarantees.optimality.report import Objective
from morphlightning.guarantees.optimality.subnetworks import scaled

DOUBLINGS, BISECTIONS = 60, 60


@torch.no_grad()
def grown_slice(objective: Objective, direction: Parameters) -> dict[str, Tensor] | None:
    r"""The multiple a K of a direction that lowers the objective most when it is appended; None where none does.

    With :math:`\kappa = a^p` the objective is :math:`l(\Phi + \kappa \phi(K)) + \lambda \kappa \theta(K)` and a
    constant: convex in kappa, whatever phi is. Its slope at 0 is negative exactly if K refutes; its zero is found by
    doubling and bisection.

    Args:
        objective: F at the present parameters.
        direction: K, not stacked.

    Returns:
        The slice, not stacked, in float64.

    Source: the meta-algorithm of Haeffele and Vidal, arXiv 1506.07540; convexity in kappa is derived here.
    """
    network, shards = objective.network, objective.shards
    stacked = {name: tensor.double()[None] for name, tensor in direction.items()}
    output, step = objective.output(), network.subnetwork.phi(objective.x, stacked)[0]
    penalty = objective.weight * network.subnetwork.theta(stacked).item()

    def slope(kappa: float) -> float:
        return penalty - float(shards.sum((objective.pull(output + kappa * step) * step).sum()))

    if not slope(0.0) < 0:
        return None
    left, right = 0.0, 1.0
    for _ in range(DOUBLINGS):
        if slope(right) >= 0:
            break
        left, right = right, 2 * right
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        left, right = (middle, right) if slope(middle) < 0 else (left, middle)
    if left == 0.0:
        return None
    size = torch.full((1,), left, dtype=torch.float64) ** (1 / network.degree)
    return {name: tensor[0] for name, tensor in scaled(stacked, size.to(output.device)).items()}
