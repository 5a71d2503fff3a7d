"""The vmap rule of operators that have no batched kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def vmap_by_loop(op: Callable[..., Any]) -> Callable[..., Any]:
    """Apply ``op`` to each element of the batch in turn."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        taken = [
            op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(taken[0], Tensor):
            return torch.stack(taken), 0
        return tuple(torch.stack(column) for column in zip(*taken, strict=True)), (0,) * len(taken[0])

    return rule
