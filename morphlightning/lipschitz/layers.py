"""Layers whose Lipschitz constant in l2 holds for every value of their parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotCertifiable, ShapeError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.lipschitz.norms import ROUNDING, convolution_norm, dense_norm
from morphlightning.lipschitz.spec import Measured, lipschitz_spec, pointwise, register
from morphlightning.lipschitz.torch_rules import by_phases, convolution_spec, dense_spec

Normalize = Literal["always", "clip"]
Padding = Literal["full", "same", "valid"]


class _Spectral(nn.Module):
    """A linear map over its certified norm; the norm is computed from the weight in each pass, and kept nowhere."""

    roles: ClassVar[Mapping[str, str]] = {"weight": "linear", "bias": "bias"}
    weight: nn.Parameter

    def __init__(self, shape: tuple[int, ...], bias: bool, normalize: Normalize, constant: float) -> None:
        super().__init__()
        name = type(self).__name__
        if normalize not in ("always", "clip"):
            raise ConfigError(f"{name}: normalize must be 'always' or 'clip', got {normalize!r}")
        if not constant > 0:
            raise ConfigError(f"{name}: constant must be positive, got {constant}")
        if min(shape) < 1:
            raise ConfigError(f"{name}: sizes must be positive, got a weight of shape {shape}")
        self.normalize, self.constant = normalize, constant
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None

    @abstractmethod
    def norm(self) -> Tensor:
        """Upper bound of the norm of the map with the parameter ``weight``; can be differentiated."""

    @property
    def effective_weight(self) -> Tensor:
        """The weight that is applied, of norm at most ``constant``; at least in float32, can be differentiated."""
        norm = self.norm() / self.constant
        norm = norm * (1 + ROUNDING * torch.finfo(norm.dtype).eps)  # the quotient is rounded too
        if self.normalize == "clip":
            norm = norm.clamp_min(1)
        return self.weight / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def lipschitz_spec(self, norm: Measured = "l2") -> LipschitzSpec:
        """The norm of the weight that is applied, in float64."""
        return self._spec_of(self.effective_weight, norm)

    @abstractmethod
    def _spec_of(self, weight: Tensor, norm: Measured) -> LipschitzSpec: ...

    def extra_repr(self) -> str:
        """Shape of the weight, and its bound."""
        return f"{', '.join(map(str, self.weight.shape))}, normalize={self.normalize!r}, constant={self.constant}"


class SpectralLinear(_Spectral):
    r"""Linear layer :math:`y = L W x / \|W\| + b`, (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of outputs.
        bias: Learn b.
        normalize: ``always``, or ``clip`` for division by max(||W|| / L, 1), which lets smaller norms be.
        constant: L.

    Raises:
        ConfigError: Any of these that cannot work.

    Source: division by the spectral norm (Yoshida and Miyato 2017; Miyato et al. 2018), which is exact here (the
    largest eigenvalue of the Gram matrix) rather than estimated by power iteration.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        normalize: Normalize = "always",
        constant: float = 1.0,
    ) -> None:
        super().__init__((out_features, in_features), bias, normalize, constant)

    def norm(self) -> Tensor:
        """As the base."""
        return dense_norm(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis; in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.effective_weight.to(x.dtype), bias)

    def _spec_of(self, weight: Tensor, norm: Measured) -> LipschitzSpec:
        return dense_spec(weight, norm)


class SpectralConv2d(_Spectral):
    r"""Convolution with zero padding over its certified norm: :math:`y = L\, w * x / \|w\| + b`.

    The norm is the upper bound of :func:`convolution_norm`, at most ``slack`` above the norm of the convolution on the
    whole plane; the layer is a part of that, so that the bound holds for any padding and image size.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of y.
        kernel_size: Extent of the square kernel.
        stride: Distance between output positions.
        padding: Zeros at each side: ``full`` (kernel_size - 1: nothing is cut off, images grow by as many), ``same``
            (images keep their size, which takes an odd kernel), or ``valid`` (none).
        groups: Groups of channels.
        bias: Learn b.
        normalize: ``always``, or ``clip`` for division by max(||w|| / L, 1), which lets smaller norms be.
        constant: L.
        slack: How far the norm may be overestimated, relative; less takes longer.

    Raises:
        ConfigError: Any of these that cannot work.

    Source: derived here from the symbol of the convolution; see :mod:`morphlightning.lipschitz.norms`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: Padding = "full",
        groups: int = 1,
        bias: bool = True,
        normalize: Normalize = "always",
        constant: float = 1.0,
        slack: float = 0.02,
    ) -> None:
        if min(kernel_size, stride, groups) < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"SpectralConv2d: kernel_size={kernel_size}, stride={stride}, groups={groups}: expected positive "
                f"numbers, and groups that divide {in_channels} and {out_channels} channels"
            )
        if padding not in ("full", "same", "valid") or (padding == "same" and kernel_size % 2 == 0):
            raise ConfigError(
                f"SpectralConv2d: padding must be 'full', 'same' (for odd kernels) or 'valid', got {padding!r} "
                f"with kernel_size={kernel_size}"
            )
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        super().__init__(shape, bias, normalize, constant)
        self.stride, self.groups, self.slack = stride, groups, slack
        self.padding = {"full": kernel_size - 1, "same": kernel_size // 2, "valid": 0}[padding]

    def norm(self) -> Tensor:
        """As the base."""
        phases = by_phases(self.weight, (self.stride, self.stride))
        return convolution_norm(phases, slack=self.slack, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, ...); in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.effective_weight.to(x.dtype), bias, self.stride, self.padding, 1, self.groups)

    def output_size(self, size: int) -> int:
        """Height or width of y for that of x."""
        return (size + 2 * self.padding - self.weight.shape[-1]) // self.stride + 1

    def _spec_of(self, weight: Tensor, norm: Measured) -> LipschitzSpec:
        return convolution_spec(weight, norm, (self.stride, self.stride), self.groups, self.slack)


@register(SpectralLinear, SpectralConv2d)
def _spectral(module: _Spectral, norm: Measured) -> LipschitzSpec:
    return module.lipschitz_spec(norm)


class GroupSort(nn.Module):
    """Sort neighbouring channels, ascending, in groups: 1-Lipschitz, and its derivative is orthogonal everywhere.

    Args:
        size: Channels of a group; it divides the number of channels.
        channel_dim: The axis of the channels.

    Raises:
        ConfigError: size < 1.
        ShapeError: In the forward pass, where the size does not divide the number of channels.

    Source: Anil, Lucas and Grosse 2019 (arXiv 1811.05381); groups of two are their MaxMin.
    """

    def __init__(self, size: int = 2, channel_dim: int = 1) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"GroupSort: size must be >= 1, got {size}")
        self.size, self.channel_dim = size, channel_dim

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        dim = self.channel_dim % x.ndim
        if x.shape[dim] % self.size:
            raise ShapeError(f"GroupSort: {x.shape[dim]} channels (axis {dim}) do not form groups of {self.size}")
        groups = x.unflatten(dim, (-1, self.size))
        if self.size == 2:  # faster than a sort
            low, high = groups.unbind(dim + 1)
            return torch.stack([torch.minimum(low, high), torch.maximum(low, high)], dim + 1).flatten(dim, dim + 1)
        ordered: Tensor = groups.sort(dim + 1).values
        return ordered.flatten(dim, dim + 1)


@register(GroupSort)
def _group_sort(module: GroupSort, norm: Measured) -> LipschitzSpec:
    return pointwise(1.0, "sorting")


class Residual(nn.Module):
    r"""The mean :math:`a x + (1 - a) f(x)` of inputs and a branch, which keeps a branch of constant 1 at 1.

    Args:
        branch: f, whose outputs have the shape of its inputs.
        keep: a, in [0, 1].

    Raises:
        ConfigError: keep outside [0, 1].
    """

    def __init__(self, branch: nn.Module, keep: float = 0.5) -> None:
        super().__init__()
        if not 0 <= keep <= 1:
            raise ConfigError(f"Residual: keep must lie in [0, 1], got {keep}")
        self.branch, self.keep = branch, keep

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        y: Tensor = torch.lerp(self.branch(x), x, self.keep)
        return y


@register(Residual)
def _residual(module: Residual, norm: Measured) -> LipschitzSpec:
    branch = lipschitz_spec(module.branch, norm)
    if branch.norm_in != branch.norm_out:
        raise NotCertifiable(f"its branch goes from {branch.norm_in} to {branch.norm_out}, its inputs stay; use linf")
    constant = module.keep + (1 - module.keep) * branch.constant
    return LipschitzSpec(constant * (1 + 1e-15), norm, norm, False, "mean with the identity")


class Sum(nn.Module):
    r"""The sum :math:`\sum_i f_i(x)` of branches, bounded by the sum of their constants.

    ``Sum(nn.Identity(), f)`` is the residual connection x + f(x), of constant 1 + L; :class:`Residual` is the mean that
    keeps 1.

    Args:
        branches: Modules of one input, whose outputs have the same shape.

    Raises:
        ConfigError: No branches.

    Source: the triangle inequality.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise ConfigError("Sum: expected at least one branch")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what the branches give."""
        first, *others = self.branches
        y: Tensor = first(x)
        for branch in others:
            y = y + branch(x)
        return y


@register(Sum)
def _sum(module: Sum, norm: Measured) -> LipschitzSpec:
    specs = []
    for number, branch in enumerate(module.branches):
        try:
            specs.append(lipschitz_spec(branch, norm))
        except NotCertifiable as error:
            raise NotCertifiable(f"branch {number}: {error}") from error
    out: Measured = "linf" if any(spec.norm_out == "linf" for spec in specs) else norm  # no number is above the l2 norm
    constant = math.fsum(spec.constant for spec in specs) * (1 + 1e-15)
    return LipschitzSpec(constant, norm, out, False, "sum of " + " + ".join(f"{spec.constant:.4g}" for spec in specs))
