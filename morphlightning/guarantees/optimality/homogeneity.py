"""Maps that are positively homogeneous in their parameters, and a check that they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from morphlightning.errors import ConfigError

Parameters = Mapping[str, Tensor]
"""The parameters of subnetworks by name, stacked in a leading axis; or those of one, without it."""
SCALES = (0.3, 2.7)
TOLERANCE = 1e-9
"""How far homogeneity may be off in float64, relative: rounding, and nothing else."""


@runtime_checkable
class Homogeneous(Protocol):
    r"""A subnetwork phi(x; K) with a penalty theta(K), both positively homogeneous of one degree p in K, x fixed.

    .. math:: \phi(x; a K) = a^p \phi(x; K), \qquad \theta(a K) = a^p \theta(K) \ge 0, \qquad a \ge 0

    """

    @property
    def degree(self) -> int:
        """The degree p > 0."""
        ...

    @property
    def theta_name(self) -> str:
        """What the penalty is called."""
        ...

    @property
    def blocks(self) -> Sequence[Sequence[str]]:
        """Names of the parameters in groups; a search for good parameters scales each group to norm 1."""
        ...

    def phi(self, x: Tensor, stacked: Parameters) -> Tensor:
        """The outputs (count, samples, ...) of stacked subnetworks for x (samples, ...)."""
        ...

    def theta(self, stacked: Parameters) -> Tensor:
        """The penalties of stacked subnetworks, (count,), >= 0; where one is 0, phi is 0."""
        ...

    def random(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Parameters of ``count`` subnetworks in random directions, theta = 1, stacked in a leading axis."""
        ...


def homogeneity_defect(
    fn: Callable[[Tensor, Any], Tensor],
    params: Parameters,
    x: Tensor,
    degree: float,
    scales: Sequence[float] = SCALES,
) -> float:
    r"""How far a function is from positively homogeneous in its parameters, with its data fixed.

    .. math:: \max_a \frac{\max |f(x; a K) - a^p f(x; K)|}{\max(1, \max|a^p f(x; K)|)}

    Up to rounding 0 where f is homogeneous of degree p at K; values are compared where both are finite, and a place
    where just one of them is makes the defect infinite. Being homogeneous in x and K together, as max-plus networks
    are, is another thing: :class:`Gain` makes one from the other.

    Args:
        fn: f, called as ``fn(x, params)``.
        params: K by name.
        x: The data.
        degree: p.
        scales: The factors a > 0.

    Source: derived here; it is the hypothesis of Haeffele and Vidal, arXiv 1506.07540, as a number.
    """
    defect = 0.0
    with torch.no_grad():
        base = fn(x, params)
        for scale in scales:
            scaled = fn(x, {name: scale * tensor for name, tensor in params.items()})
            expected = scale**degree * base
            finite = expected.isfinite()
            if not torch.equal(finite, scaled.isfinite()):
                return math.inf
            off = (scaled - expected)[finite].abs()
            largest = expected[finite].abs()
            if off.numel():
                defect = max(defect, off.max().item() / max(1.0, largest.max().item()))
    return defect


def check_homogeneous(subnetwork: Homogeneous, x: Tensor) -> None:
    """Raise ConfigError unless phi and theta are homogeneous of the declared degree, at random parameters.

    Args:
        subnetwork: What declares it.
        x: Data (samples, ...) to look at phi with.
    """
    generator = torch.Generator().manual_seed(0)
    stacked = {name: tensor.double() for name, tensor in subnetwork.random(4, generator).items()}
    degree = subnetwork.degree
    found = {
        "phi": homogeneity_defect(subnetwork.phi, stacked, x.double(), degree),
        f"theta {subnetwork.theta_name!r}": homogeneity_defect(lambda _, k: subnetwork.theta(k), stacked, x, degree),
    }
    for what, defect in found.items():
        if not defect <= TOLERANCE:
            raise ConfigError(
                f"{subnetwork}: {what} is not positively homogeneous of degree {subnetwork.degree} in the parameters "
                f"(relative defect {defect:.2g}, at most {TOLERANCE:g} is rounding); for max-plus networks use Gain, "
                "leave out biases after the first layer, or give the degree that fits"
            )
