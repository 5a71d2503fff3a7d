"""vmap rules of the operators: the mapped axis becomes more samples or more groups of one call, else a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from morphlightning.ops import geometry

Rule = Callable[..., Any]


def vmap_by_loop(op: Callable[..., Any]) -> Rule:
    """Apply ``op`` to each element of the mapped axis in turn."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        taken = [
            op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(taken[0], Tensor):
            return torch.stack(taken), 0
        return tuple(torch.stack(column) for column in zip(*taken, strict=True)), (0,) * len(taken[0])

    return rule


def more_groups(key: str, times: int) -> str:
    """The geometry ``key`` with ``times`` as many groups."""
    where = geometry.parse(key)
    return replace(where, groups=where.groups * times).key


def as_groups(tensor: Tensor, axis: Any, size: int) -> Tensor:
    """(samples, channels, ...) with an axis mapped at ``axis``, or none: (samples, size * channels, ...)."""
    tensor = (
        tensor.movedim(axis, 1) if isinstance(axis, int) else tensor.unsqueeze(1).expand(-1, size, *tensor.shape[1:])
    )
    return tensor.flatten(1, 2)


def as_rows(tensor: Tensor, axis: Any, size: int) -> Tensor:
    """(out, ...) with an axis mapped at ``axis``, or none: (size * out, ...)."""
    tensor = tensor.movedim(axis, 0) if isinstance(axis, int) else tensor.expand(size, *tensor.shape)
    return tensor.flatten(0, 1)


def from_groups(tensor: Tensor, size: int) -> Tensor:
    """(samples, size * channels, ...) with the mapped axis in front; what is empty stays so."""
    if tensor.numel() == 0 and tensor.ndim == 1:
        return tensor.expand(size, 0)
    split: Tensor = tensor.unflatten(1, (size, -1))
    return split.movedim(1, 0)


def from_rows(tensor: Tensor, size: int) -> Tensor:
    """(size * out, ...) with the mapped axis in front; what is empty stays so."""
    if tensor.numel() == 0 and tensor.ndim == 1:
        return tensor.expand(size, 0)
    split: Tensor = tensor.unflatten(0, (size, -1))
    return split


def grown(shape: list[int], axis: int, times: int) -> list[int]:
    """``shape`` with ``axis`` so many times as long."""
    return [n * times if i == axis else n for i, n in enumerate(shape)]
