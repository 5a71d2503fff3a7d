"""Penalties theta of a subnetwork's parameters, by name: each homogeneous of one degree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.errors import ConfigError


class Penalty(NamedTuple):
    """A penalty of the norms of blocks, and its degree for so many blocks."""

    value: Callable[[Tensor], Tensor]
    degree: Callable[[int], int]


PENALTIES = {
    "norm": Penalty(lambda norms: torch.linalg.vector_norm(norms, dim=-1), lambda blocks: 1),
    "half_square": Penalty(lambda norms: 0.5 * norms.square().sum(-1), lambda blocks: 2),
    "product": Penalty(lambda norms: norms.prod(-1), lambda blocks: blocks),
    "power": Penalty(lambda norms: norms.pow(norms.shape[-1]).mean(-1), lambda blocks: blocks),
}
r"""With norms \|K_b\| of B blocks: their norm (degree 1), half the sum of their squares (degree 2), their product, and
(1/B) sum of their B-th powers (both of degree B). By the inequality of arithmetic and geometric means the last is not
below the product, and equal where all norms are: if phi has degree 1 in each block, both have the same polar."""


def rows(stacked: Tensor) -> Tensor:
    """A stacked parameter (count, ...) as a matrix (count, numbers of one)."""
    return stacked.flatten(1) if stacked.ndim > 1 else stacked[:, None]


def block_norms(blocks: Sequence[Sequence[Tensor]]) -> Tensor:
    """Euclidean norms of blocks of stacked tensors, (count, blocks); their gradient at 0 is 0."""
    flat = [torch.cat([rows(tensor) for tensor in block], 1) for block in blocks]
    return torch.stack([torch.linalg.vector_norm(block, dim=1) for block in flat], 1)


def penalty_for(name: str | None, degree: int, blocks: int) -> str:
    """The name of a penalty of this degree; None chooses.

    Raises:
        ConfigError: There is no such penalty, or it has another degree.
    """
    if name is None:
        name = {1: "norm", 2: "half_square"}.get(degree, "power")
    if name not in PENALTIES:
        raise ConfigError(f"penalty {name!r} is unknown; choose one of {', '.join(PENALTIES)}")
    found = PENALTIES[name].degree(blocks)
    if found != degree:
        raise ConfigError(
            f"penalty {name!r} has degree {found} for {blocks} blocks of parameters, phi has degree {degree}; no "
            "theorem is about such a pair. Choose a penalty of the same degree: norm has 1, half_square 2, product and "
            "power the number of blocks (children of the outermost Sequential that have parameters)"
        )
    return name
