"""How far a parallel sum is from the global optimum: balance of slices, polar, certified duality gap, verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morphlightning.bregman import OutputLoss
from morphlightning.errors import BrokenCertificateError, ConfigError, DataError
from morphlightning.guarantees.optimality.homogeneity import Parameters
from morphlightning.guarantees.optimality.losses import dual_values, furthest
from morphlightning.guarantees.optimality.parallel import ParallelSum
from morphlightning.guarantees.optimality.polar import BoundedPolar, PolarSearch, Shards, ratios

Verdict = Literal["certified", "refuted", "unknown"]
REFUTED = 1e-6
"""By how much the polar has to be above 1 at least to refute: sums in float64 are far more exact."""
ZERO = 1e-8
"""Slices of a smaller Euclidean norm count as zero."""


class Objective:
    r"""The objective of all samples, :math:`F(K) = \frac1N \sum_n l(\Phi(x_n), y_n) + \lambda \sum_i \theta(K_i)`.

    In float64 whatever the network's dtype, on fixed data that are seen whole.

    Args:
        network: Phi and theta.
        loss: l, of one sample.
        x: Inputs of all samples.
        y: Their targets.
        weight: lambda > 0.
        shards: How processes share the samples; None for one process.

    Raises:
        ConfigError: lambda is not positive.
        DataError: Data that are not finite, or no samples.
    """

    def __init__(
        self, network: ParallelSum, loss: OutputLoss, x: Tensor, y: Tensor, weight: float, shards: Shards | None = None
    ) -> None:
        if not weight > 0:
            raise ConfigError(
                f"Objective: the weight of the penalty is {weight}; without a positive one there is no polar, and any "
                "number of slices may pay: give matched_decay a positive weight"
            )
        if len(x) == 0 or len(x) != len(y):
            raise DataError(f"Objective: {len(x)} inputs and {len(y)} targets; expected as many, and at least one")
        if not x.isfinite().all():
            raise DataError("Objective: inputs hold NaN or infinite values; no bound holds for them")
        self.network, self.loss, self.weight = network, loss, weight
        self.shards = Shards(len(x)) if shards is None else shards
        self.x, self._targets = self.shards.mine(x).double(), self.shards.mine(y)

    @torch.no_grad()
    def slices(self) -> dict[str, Tensor]:
        """The slices' parameters in float64, stacked."""
        return {name: tensor.detach().double() for name, tensor in self.network.parameters_of_slices().items()}

    @torch.no_grad()
    def output(self) -> Tensor:
        """Phi at this process's samples."""
        stacked = self.slices()
        if self.network.count:
            return self.network.subnetwork.phi(self.x, stacked).sum(0)
        one = {name: tensor.detach()[:1].double() for name, tensor in self.network.slices.items()}
        return torch.zeros_like(self.network.subnetwork.phi(self.x, one)[0])

    def targets(self, output: Tensor) -> Tensor:
        """The targets in the shape of the output."""
        return self.loss.targets(self._targets, output)

    def mean(self, values: Tensor) -> float:
        """The mean over the samples of all processes."""
        return float(self.shards.sum(values.sum())) / self.shards.size

    def data_loss(self, output: Tensor) -> float:
        """The mean of l."""
        return self.mean(self.loss.value(output, self.targets(output)))

    def pull(self, output: Tensor) -> Tensor:
        """Minus the gradient of the mean loss in the output, at this process's samples."""
        return -self.loss.gradient(output, self.targets(output)) / self.shards.size

    @torch.no_grad()
    def value(self) -> float:
        """F."""
        return self.data_loss(self.output()) + self.weight * float(self.thetas().sum())

    @torch.no_grad()
    def thetas(self) -> Tensor:
        """The theta of each slice, (r,)."""
        return self.network.subnetwork.theta(self.slices())


@dataclass(frozen=True)
class OptimalityReport:
    r"""What is known of the distance to the global optimum F*, over networks with any number of slices.

    Attributes:
        objective: F.
        data_loss: Its first part.
        penalty: Its second part.
        slice_balance: :math:`\langle -\nabla l, \phi(K_i) \rangle - \lambda \theta(K_i)` of each slice, 0 where F is
            stationary; (r,).
        polar_lower: A lower bound of the polar over lambda: above 1 it refutes.
        polar_upper: An upper bound, None where none is known.
        lower_bound: Certified lower bound of F*, None without an upper bound of the polar.
        estimated_bound: What the lower bound were if the search had found the polar; no certificate.
        direction: The slice, theta = 1, that has ``polar_lower``.
        zero_slices: Slices of norm below 1e-8; they prove nothing.
        slices: r.
        tolerance: How near F must be to F*, relative, to count as certified.
    """

    objective: float
    data_loss: float
    penalty: float
    slice_balance: Tensor
    polar_lower: float
    polar_upper: float | None
    lower_bound: float | None
    estimated_bound: float
    direction: Parameters
    zero_slices: int
    slices: int
    tolerance: float

    @property
    def gap(self) -> float | None:
        """Certified: F - F* is at most this; None where nothing is certified."""
        return None if self.lower_bound is None else max(self.objective - self.lower_bound, 0.0)

    @property
    def gap_estimated(self) -> float:
        """The same if the search had found the polar. Not a bound."""
        return max(self.objective - self.estimated_bound, 0.0)

    @property
    def excess(self) -> float | None:
        """Certified: F is at most this share above F*; inf where F* may be 0, None where nothing is certified."""
        if self.lower_bound is None or self.gap is None:
            return None
        return self.gap / self.lower_bound if self.lower_bound > 0 else math.inf

    @property
    def balance_max(self) -> float:
        """The largest modulus of the slices' balances."""
        return self.slice_balance.abs().max().item() if len(self.slice_balance) else 0.0

    @property
    def verdict(self) -> Verdict:
        """``certified`` where F is within the tolerance, else ``refuted`` by a direction or ``unknown``."""
        if self.excess is not None and self.excess <= self.tolerance:
            return "certified"
        return "refuted" if self.polar_lower > 1 + REFUTED else "unknown"

    def __str__(self) -> str:
        """One sentence; an estimate is called one."""
        known = "no upper bound of the polar is known"
        if self.excess is not None:
            known = f"certified: at most {100 * self.excess:.3g} % above the global optimum"
            if math.isinf(self.excess):
                known = f"certified: at most {self.gap:.4g} above the global optimum"
        found = {
            "certified": f"{known} (any number of slices)",
            "refuted": f"refuted: one more slice lowers the objective (polar >= {self.polar_lower:.6g} > 1); {known}",
            "unknown": f"unknown: no better slice was found (polar >= {self.polar_lower:.6g}); {known}",
        }[self.verdict]
        guess = "" if self.lower_bound is not None else f"; gap by the search alone {self.gap_estimated:.3g}, no bound"
        return f"F = {self.objective:.8g}, {self.slices} slices: {found}{guess}"


@torch.no_grad()
def certify_optimality(
    objective: Objective, search: PolarSearch | None = None, tolerance: float = 0.01
) -> OptimalityReport:
    r"""Bound how far an objective is from its global optimum, and look for a slice that lowers it.

    For any z with <z, phi(K)> <= lambda theta(K) for all K, and any number of slices,

    .. math:: F \ge \tfrac1N \sum_n l(\Phi_n, y_n) + \langle z, \Phi \rangle
              \ge \min_Z \tfrac1N \sum_n l(Z_n, y_n) + \langle z, Z \rangle,

    which is a number. Here :math:`z = -t \nabla l` for the best t >= 0 that an upper bound of the polar allows.

    Args:
        objective: F at the present parameters.
        search: The search for a better slice.
        tolerance: Relative distance within which the verdict is ``certified``.

    Raises:
        BrokenCertificateError: A direction exceeds the upper bound of the polar, which is then wrong.

    Source: the polar condition of Haeffele and Vidal, arXiv 1506.07540; the gap is derived in docs/guarantees.md.
    """
    network, weight, shards = objective.network, objective.weight, objective.shards
    output, slices = objective.output(), objective.slices()
    pull = objective.pull(output)
    thetas = objective.thetas()
    inner = thetas.new_zeros(0)
    if network.count:
        inner = shards.sum((network.subnetwork.phi(objective.x, slices) * pull).flatten(1).sum(1))
    found = (search or PolarSearch())(network.subnetwork, objective.x, pull, shards, slices if network.count else None)
    lower, direction, upper = found.value, found.direction, None
    if isinstance(network.subnetwork, BoundedPolar):
        bound = network.subnetwork.polar_bound(objective.x, pull, shards)
        upper = bound.value
        if bound.direction is not None:
            known = {name: tensor[None] for name, tensor in bound.direction.items()}
            reached = ratios(network.subnetwork, known, objective.x, pull, shards).item()
            if reached > lower:
                lower, direction = reached, dict(bound.direction)
        _agree(lower, upper, network)
    data_loss, penalty = objective.data_loss(output), weight * float(thetas.sum())
    return OptimalityReport(
        objective=data_loss + penalty,
        data_loss=data_loss,
        penalty=penalty,
        slice_balance=inner - weight * thetas,
        polar_lower=lower / weight,
        polar_upper=None if upper is None else upper / weight,
        lower_bound=None if upper is None else _dual(objective, output, upper / weight),
        estimated_bound=_dual(objective, output, lower / weight),
        direction=direction,
        zero_slices=int((network.norms() < ZERO).sum()),
        slices=network.count,
        tolerance=tolerance,
    )


def _agree(lower: float, upper: float, network: ParallelSum) -> None:
    """A bound that a found direction exceeds is no bound: nothing is certified by it."""
    if lower > upper * (1 + 1e-9):
        raise BrokenCertificateError(
            f"{network.subnetwork}: polar_bound gave {upper:.10g}, and a direction reaches {lower:.10g}; the bound is "
            "wrong, and certificates that rest on it are void: correct it, or leave polar_bound out"
        )


def _dual(objective: Objective, output: Tensor, polar: float) -> float:
    """The best lower bound that a polar over lambda allows: a concave function of t, by golden sections."""
    target = objective.targets(output)
    largest = min(furthest(objective.loss), 1 / polar if polar > 0 else math.inf)

    def value(factor: float) -> float:
        return objective.mean(dual_values(objective.loss, output, target, factor))

    if math.isinf(largest):  # no direction pays: the loss is at its minimum over multiples of z
        largest = 1.0
    return max(value(largest), _largest(value, largest))


def _largest(value: Callable[[float], float], right: float, steps: int = 60) -> float:
    """The largest value of a concave function on [0, right]; each of its values is a lower bound, so none is too much.

    Source: golden section search (Kiefer 1953).
    """
    golden = (math.sqrt(5) - 1) / 2
    left = 0.0
    ends = [right - golden * right, golden * right]
    values = [value(end) for end in ends]
    best = max(value(0.0), *values)
    for _ in range(steps):
        if values[0] < values[1]:
            left, ends[0], values[0] = ends[0], ends[1], values[1]
            ends[1] = left + golden * (right - left)
            values[1] = value(ends[1])
        else:
            right, ends[1], values[1] = ends[1], ends[0], values[0]
            ends[0] = right - golden * (right - left)
            values[0] = value(ends[0])
        best = max(best, *values)
    return best
