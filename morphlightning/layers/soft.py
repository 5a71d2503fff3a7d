"""Layers with log-sum-exp in place of the maximum; their hard kin are the limit of large beta."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.dense import dilation, erosion
from morphlightning.functional.soft import check_merge, check_precision, soft_dilation, soft_erosion, soft_window
from morphlightning.functional.windowing import Size, apply_window
from morphlightning.layers.base import MorphLayer
from morphlightning.layers.dense import Dilation, Erosion
from morphlightning.layers.windows import (
    Dilation1d,
    Dilation2d,
    Dilation3d,
    Erosion1d,
    Erosion2d,
    Erosion3d,
    WindowLayer,
)


class _Soft(MorphLayer):
    """An inverse temperature, a buffer that is saved with the weights, over a layer's weight.

    At beta = inf the layer is the hard one, with the gradient of rule ``first``; so a schedule may end there.
    """

    hard: ClassVar[type[MorphLayer]]
    beta: Tensor

    def __init__(self, *shape: Any, beta: float = 1.0, precision: str = "full", **options: Any) -> None:
        refused = [name for name in ("derivative", "heuristic") if name in options]
        if refused:
            raise ConfigError(
                f"{type(self).__name__} does not take {' or '.join(refused)}: log-sum-exp is smooth, its gradient is "
                "its derivative; use Dilation or Erosion for rules at ties"
            )
        super().__init__(*shape, **options)
        self.precision = check_precision(type(self).__name__, precision)
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.set_beta(beta)

    def set_beta(self, beta: float) -> None:
        """Change the inverse temperature; inf for the maximum itself."""
        if not beta > 0:
            raise ConfigError(f"{type(self).__name__}: beta must be a number > 0, or inf, got {beta}")
        self.beta.fill_(beta)
        self._at_limit = beta == math.inf

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._at_limit = bool(self.beta.isinf())

    def harden(self) -> MorphLayer:
        """The layer with maxima in place of log-sum-exp, and a copy of the weights."""
        layer = self._hard_layer()
        layer.train(self.training).to(self.weight.device, self.weight.dtype)
        layer.mask.copy_(self.mask)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
        return layer

    @abstractmethod
    def _hard_layer(self) -> MorphLayer:
        """The hard layer of the same sizes, with any weights."""


class SoftDilation(_Soft):
    r"""Soft dilation :math:`\frac1\beta \log \sum_j e^{\beta (x_j + w_{ij})}`.

    (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        beta: Inverse temperature, > 0; inf for the maximum itself.
        precision: ``"full"`` or ``"bfloat16"``, as for :func:`morphlightning.functional.soft_dilation`.
        **options: initializer, mask, generator; see :class:`MorphLayer`.
    """

    op: ClassVar[str] = "dilation"
    hard: ClassVar[type[MorphLayer]] = Dilation

    def __init__(
        self, in_features: int, out_features: int, *, beta: float = 1.0, precision: str = "full", **options: Any
    ) -> None:
        super().__init__((out_features, in_features), beta=beta, precision=precision, **options)
        self.in_features, self.out_features = in_features, out_features

    def _hard_layer(self) -> MorphLayer:
        return self.hard(self.in_features, self.out_features, initializer="zeros")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Dilate the last axis, softly."""
        if self._at_limit:
            return dilation(x, self.effective_weight)
        return soft_dilation(x, self.effective_weight, self.beta, precision=self.precision)


class SoftErosion(SoftDilation):
    """Soft erosion, the dual of :class:`SoftDilation`."""

    op: ClassVar[str] = "erosion"
    hard: ClassVar[type[MorphLayer]] = Erosion

    def forward(self, x: Tensor) -> Tensor:
        """Erode the last axis, softly."""
        if self._at_limit:
            return erosion(x, self.effective_weight)
        return soft_erosion(x, self.effective_weight, self.beta, precision=self.precision)


class _SoftDilation(_Soft, WindowLayer):
    r"""Soft dilation :math:`\frac1\beta \log \sum_{c,z} e^{\beta (f_c(p - z) + b_{oc}(z))}` with learnable b.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None (default) for depthwise.
        kernel_size: Extent of the window.
        beta: Inverse temperature, > 0; inf for the maximum itself.
        precision: ``"full"`` or ``"bfloat16"``, as for :func:`morphlightning.functional.soft_dilation`.
        **options: Options of the window, but ``merge="sum"``, and initializer, mask, generator; see
            :class:`MorphLayer`.
    """

    op: ClassVar[str] = "dilation"

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: Size = 3,
        *,
        beta: float = 1.0,
        precision: str = "full",
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, beta=beta, precision=precision, **options)
        check_merge(type(self).__name__, self.windowing)

    def _hard_layer(self) -> MorphLayer:
        sizes: tuple[Any, ...] = (self.in_channels, self.out_channels, self.kernel_size)
        return self.hard(*sizes, initializer="zeros", **asdict(self.windowing))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, *space) to (batch, out_channels, *space / stride)."""
        where, how = type(self).__name__, self.windowing
        if self._at_limit:
            return apply_window(where, x, self.effective_weight, self.rank, self.sign, how, self.pipeline.policy)
        return soft_window(where, x, self.effective_weight, self.rank, self.sign, self.beta, how, self.precision)


class _SoftErosion(_SoftDilation):
    r"""Soft erosion :math:`-\frac1\beta \log \sum_{c,z} e^{-\beta (f_c(p + z) - b_{oc}(z))}`; as the dilation."""

    op: ClassVar[str] = "erosion"


class SoftDilation1d(_SoftDilation):
    """Soft dilation of signals."""

    rank: ClassVar[int] = 1
    hard: ClassVar[type[MorphLayer]] = Dilation1d


class SoftDilation2d(_SoftDilation):
    """Soft dilation of images."""

    rank: ClassVar[int] = 2
    hard: ClassVar[type[MorphLayer]] = Dilation2d


class SoftDilation3d(_SoftDilation):
    """Soft dilation of volumes."""

    rank: ClassVar[int] = 3
    hard: ClassVar[type[MorphLayer]] = Dilation3d


class SoftErosion1d(_SoftErosion):
    """Soft erosion of signals."""

    rank: ClassVar[int] = 1
    hard: ClassVar[type[MorphLayer]] = Erosion1d


class SoftErosion2d(_SoftErosion):
    """Soft erosion of images."""

    rank: ClassVar[int] = 2
    hard: ClassVar[type[MorphLayer]] = Erosion2d


class SoftErosion3d(_SoftErosion):
    """Soft erosion of volumes."""

    rank: ClassVar[int] = 3
    hard: ClassVar[type[MorphLayer]] = Erosion3d
