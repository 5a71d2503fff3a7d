"""Shifts: what normalizes and keeps a network 1-Lipschitz, because it does not scale."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from morphlightning.errors import ConfigError, ShapeError


class Shift(nn.Module):
    r"""Subtracts a constant: :math:`y = x - c`, any shape.

    Args:
        offset: c, a number.
    """

    offset: Tensor

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(float(offset)))

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the constant."""
        return x - self.offset.to(x.dtype)

    def extra_repr(self) -> str:
        """The constant."""
        return f"{float(self.offset):g}"


class MeanShift(nn.Module):
    r"""Subtracts a mean from each feature: :math:`y = x - \mu`, (..., features) to itself.

    In training the mean is that of the batch, over all axes but the last and over all processes, and gradients flow
    through it. In evaluation it is a constant: the buffer ``mean``, a running average
    :math:`\mu \leftarrow (1 - m)\mu + m \bar x` of batch means. There is no scale, so in evaluation the map is an
    isometry in every norm, and maximum and minimum commute with it.

    Args:
        features: Size of the last axis.
        momentum: m; None for the plain average of all batches since the last :meth:`reset`.

    Raises:
        ConfigError: Sizes or a momentum that cannot be.
        ShapeError: The last axis has another size.

    Source: mean shift normalization of l-inf-dist networks (Zhang et al., arXiv 2102.05363).
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, features: int, momentum: float | None = 0.1) -> None:
        super().__init__()
        if features < 1 or not (momentum is None or 0 < momentum <= 1):
            raise ConfigError(
                f"MeanShift: expected features >= 1 and momentum in (0, 1] or None, got {features} and {momentum}"
            )
        self.features, self.momentum = features, momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("batches", torch.tensor(0))

    def reset(self) -> None:
        """Forget the running mean."""
        self.mean.zero_()
        self.batches.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean."""
        if x.ndim < 1 or x.shape[-1] != self.features:
            raise ShapeError(f"MeanShift: x has shape {tuple(x.shape)}, its last axis must be {self.features}")
        if not self.training or x.numel() == 0:
            return x - self.mean.to(x.dtype)
        mean = _mean_of_all(x.reshape(-1, self.features))
        with torch.no_grad():
            self.batches += 1
            self.mean.lerp_(mean.to(self.mean.dtype), 1 / self.batches if self.momentum is None else self.momentum)
        return x - mean.to(x.dtype)

    def extra_repr(self) -> str:
        """Features and momentum."""
        return f"{self.features}, momentum={self.momentum}"


def _mean_of_all(rows: Tensor) -> Tensor:
    """The mean of the rows of all processes, at least in float32."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows.mean(0)
    total: Tensor = all_reduce(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
    return total[:-1] / total[-1]
