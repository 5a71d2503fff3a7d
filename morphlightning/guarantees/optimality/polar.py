r"""The polar Omega°(z) = sup of <z, phi(K)> over theta(K) <= 1, from below by a search and from above where known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from morphlightning.guarantees.optimality.homogeneity import Homogeneous, Parameters
from morphlightning.guarantees.optimality.penalties import rows
from morphlightning.guarantees.optimality.subnetworks import on_spheres, scaled


@dataclass(frozen=True)
class Shards:
    """How samples are shared out among processes: sample i belongs to process i mod ``processes``.

    Attributes:
        size: Samples of all processes.
        rank: Number of this process.
        processes: How many there are.
        sum_: The sum of a tensor over all processes.
    """

    size: int
    rank: int = 0
    processes: int = 1
    sum_: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def mine(self, whole: Tensor) -> Tensor:
        """The samples of this process."""
        return whole[self.rank :: self.processes]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return tensor if self.processes == 1 else self.sum_(tensor)

    def whole(self, mine: Tensor) -> Tensor:
        """The samples of all processes, in their order."""
        if self.processes == 1:
            return mine
        found = mine.new_zeros(self.size, *mine.shape[1:])
        found[self.rank :: self.processes] = mine
        return self.sum(found)


class PolarBound(NamedTuple):
    """An upper bound of the polar, and where it is attained if it is known to be."""

    value: float
    direction: Parameters | None = None


@runtime_checkable
class BoundedPolar(Protocol):
    """A subnetwork that knows an upper bound of its polar."""

    def polar_bound(self, x: Tensor, z: Tensor, shards: Shards) -> PolarBound:
        """The bound for z (samples, outputs) on data x; both are the samples of this process, in float64."""
        ...


class Found(NamedTuple):
    """The best direction of a search: <z, phi(K)> / theta(K), and K with theta(K) = 1."""

    value: float
    direction: dict[str, Tensor]


@dataclass(frozen=True)
class PolarSearch:
    r"""Multi-start ascent of <z, phi(K)> / theta(K): a lower bound of the polar, and the direction that has it.

    Each block of parameters lives on the unit sphere and steps along its normalized gradient, by lengths
    :math:`1 / (1 + t / 10)`; where <z, phi(K)> is convex in a block this is the power method with memory. Starts are
    random, and the slices that there are; one without any slope goes on from its opposite. It finds what it finds: a
    value above the bound of a theorem refutes, one below it proves nothing.

    Args:
        starts: Number of random starts.
        steps: Steps of each.
        seed: Of the random starts, which are the same at each call.

    Source: derived here; the polar is that of Haeffele and Vidal, arXiv 1506.07540.
    """

    starts: int = 16
    steps: int = 150
    seed: int = 0

    def __call__(
        self, subnetwork: Homogeneous, x: Tensor, z: Tensor, shards: Shards, also: Parameters | None = None
    ) -> Found:
        """The best direction found.

        Args:
            subnetwork: phi and theta.
            x: Data of this process, (samples, ...).
            z: The linear functional, in the shape of phi's output.
            shards: How samples are shared out.
            also: More starts, stacked.
        """
        drawn = subnetwork.random(self.starts, torch.Generator().manual_seed(self.seed))
        starts = {name: tensor.to(x) for name, tensor in drawn.items()}
        if also is not None:
            starts = {name: torch.cat([tensor, also[name].detach().to(x)]) for name, tensor in starts.items()}
        current = on_spheres(subnetwork, starts)
        best, where = ratios(subnetwork, current, x, z, shards), current
        for step in range(self.steps):
            values, slopes = _slopes(subnetwork, current, x, z, shards)
            best, where = _better(best, where, values, current)
            length = 1 / (1 + step / 10)
            ahead = on_spheres(subnetwork, slopes)
            moved = on_spheres(subnetwork, {name: t + length * ahead[name] for name, t in current.items()})
            current = scaled(moved, torch.where(_dead(slopes), -1, 1))
        best, where = _better(best, where, ratios(subnetwork, current, x, z, shards), current)
        first = int(best.argmax())
        direction = {name: tensor[first : first + 1] for name, tensor in where.items()}
        theta = subnetwork.theta(direction)
        unit = scaled(direction, theta ** (-1 / subnetwork.degree))
        return Found(best[first].item(), {name: tensor[0] for name, tensor in unit.items()})


def ratios(subnetwork: Homogeneous, stacked: Parameters, x: Tensor, z: Tensor, shards: Shards) -> Tensor:
    """<z, phi(K)> / theta(K) of stacked parameters, (count,); -inf where theta is 0."""
    with torch.no_grad():
        return _ratios(subnetwork, stacked, _products(subnetwork, stacked, x, z, shards))


def _ratios(subnetwork: Homogeneous, stacked: Parameters, products: Tensor) -> Tensor:
    theta = subnetwork.theta(stacked)
    return torch.where(theta > 0, products / theta, -torch.inf)


def _products(subnetwork: Homogeneous, stacked: Parameters, x: Tensor, z: Tensor, shards: Shards) -> Tensor:
    outputs = subnetwork.phi(x, stacked)
    return shards.sum((outputs * z).flatten(1).sum(1))


def _slopes(
    subnetwork: Homogeneous, stacked: Parameters, x: Tensor, z: Tensor, shards: Shards
) -> tuple[Tensor, dict[str, Tensor]]:
    """The ratios, and the gradients of <z, phi(K)>."""
    with torch.enable_grad():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in stacked.items()}
        outputs = subnetwork.phi(x, leaves)
        products = (outputs * z).flatten(1).sum(1)
        slopes = torch.autograd.grad(products.sum(), list(leaves.values()))
    packed = shards.sum(torch.cat([products.detach()[:, None], *(rows(slope) for slope in slopes)], 1))
    products, *flat = packed.split([1, *(slope[0].numel() for slope in slopes)], 1)
    gradients = {name: one.view_as(leaves[name]) for name, one in zip(leaves, flat, strict=True)}
    return _ratios(subnetwork, stacked, products[:, 0]), gradients


def _dead(slopes: Parameters) -> Tensor:
    """Which of stacked subnetworks have no slope at all: their opposite has, of neurons that no sample activates."""
    return torch.stack([(rows(slope) == 0).all(1) for slope in slopes.values()]).all(0)


def _better(
    best: Tensor, where: dict[str, Tensor], values: Tensor, current: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The better of two sets of points, one by one."""
    better = values > best
    chosen = {name: torch.where(better.view(-1, *[1] * (t.ndim - 1)), current[name], t) for name, t in where.items()}
    return torch.where(better, values, best), chosen
