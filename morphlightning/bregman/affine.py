"""Affine layers as lifted training sees them: a map, its adjoint, its norm, and the normal equations of its weights.

With the rows a of its design matrix (the inputs of a linear layer, the patches of a convolution, each with a 1 appended
where there is a bias), an affine layer is u = a V^T, V = [W, b]. Least squares for V needs the Gram matrix sum a^T a
and the moment sum t^T a of a target t alone, both sums over samples, so that they add up over batches and processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from morphlightning.lipschitz.norms import lanczos_norm, scaled

UNFOLDED = 2**24
"""At most so many numbers of unfolded patches exist at once."""
BOUNDED_UP_TO = 256
"""Up to this smaller side of a linear layer its norm is bounded rigorously, by products of its square."""
SQUARINGS, NORM_MARGIN = 5, 1.05
NEGLIGIBLE, SQUARES = 1e-18, (1e-12, 1e25)
"""Entries of powers that count as 0, and where norms of squares may lie, in float32."""


class Affine(ABC):
    """One affine layer of a chain, with the reshapes (Flatten, Unflatten) that stand before it.

    Weights are handled as V (groups, out / groups, d), with the bias as the last of the d columns; groups is 1 but for
    grouped convolutions.

    Attributes:
        name: Where the layer stands in the network.
        module: The layer itself; its parameters are read anew at each use.
    """

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d, reshapes: Sequence[nn.Module]) -> None:
        self.name, self.module, self._reshapes = name, module, tuple(reshapes)

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs x to u = a V^T, in the dtype of the weights; where autocast is on, rounded by it."""
        u: Tensor = self.module(self.reshaped(x))
        return u.to(self.module.weight.dtype)

    def reshaped(self, x: Tensor) -> Tensor:
        """Bring x into the shape that the layer takes."""
        for module in self._reshapes:
            x = module(x)
        return x

    @property
    def has_bias(self) -> bool:
        """Whether the design matrix has a column of ones."""
        return self.module.bias is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, out / groups, d)."""
        weight, groups = self.module.weight, getattr(self.module, "groups", 1)
        return groups, len(weight) // groups, math.prod(weight.shape[1:]) + self.has_bias

    @abstractmethod
    def adjoint(self, r: Tensor, like: Tensor) -> Tensor:
        """W^T r, in the shape of the inputs ``like``."""

    @abstractmethod
    def gram(self, x: Tensor) -> Tensor:
        """Sum of a^T a over samples and positions, (groups, d, d)."""

    @abstractmethod
    def moment(self, x: Tensor, t: Tensor) -> Tensor:
        """Sum of t^T a, (groups, out / groups, d)."""

    @abstractmethod
    def weights(self) -> Tensor:
        """V, a copy."""

    @abstractmethod
    def assign(self, weights: Tensor) -> None:
        """Write V into the layer's parameters."""

    @abstractmethod
    def squared_norm(self, x: Tensor) -> Tensor:
        """||W||^2 for inputs shaped as x, by the weights alone: equal on every process."""


def affine(name: str, module: nn.Linear | nn.Conv2d, reshapes: Sequence[nn.Module] = ()) -> Affine:
    """The affine layer of a module."""
    if isinstance(module, nn.Linear):
        return Dense(name, module, reshapes)
    return Convolution(name, module, reshapes)


class Dense(Affine):
    """A linear layer; further axes between batch and features count as samples."""

    def adjoint(self, r: Tensor, like: Tensor) -> Tensor:
        """As the base, r W."""
        return (r @ self.module.weight).to(r.dtype).reshape(like.shape)

    def gram(self, x: Tensor) -> Tensor:
        """As the base, (1, d, d)."""
        a = self.reshaped(x).flatten(0, -2)
        inner = a.mT @ a
        if not self.has_bias:
            return inner[None]
        sums = a.sum(0)
        gram = a.new_empty(len(sums) + 1, len(sums) + 1)
        gram[:-1, :-1], gram[-1, :-1], gram[:-1, -1], gram[-1, -1] = inner, sums, sums, len(a)
        return gram[None]

    def rows(self, x: Tensor) -> Tensor:
        """The design matrix (samples, d), a copy where there is a bias."""
        a = self.reshaped(x).flatten(0, -2)
        return torch.cat([a, a.new_ones(len(a), 1)], 1) if self.has_bias else a

    def moment(self, x: Tensor, t: Tensor) -> Tensor:
        """As the base, (1, out, d)."""
        a, t = self.reshaped(x).flatten(0, -2), t.flatten(0, -2)
        moment = a.new_empty(t.shape[1], a.shape[1] + self.has_bias)
        torch.mm(t.mT, a, out=moment[:, : a.shape[1]])
        if self.has_bias:
            moment[:, -1] = t.sum(0)
        return moment[None]

    def weights(self) -> Tensor:
        """As the base, (1, out, d)."""
        weight, bias = self.module.weight.detach(), self.module.bias
        return (weight.clone() if bias is None else torch.cat([weight, bias.detach()[:, None]], 1))[None]

    def assign(self, weights: Tensor) -> None:
        """As the base."""
        v = weights[0]
        self.module.weight.data.copy_(v[:, :-1] if self.has_bias else v)
        if self.module.bias is not None:
            self.module.bias.data.copy_(v[:, -1])

    def squared_norm(self, x: Tensor) -> Tensor:
        """As the base: of a layer of moderate width never below it, else 5 % above what Lanczos' iteration finds.

        With G = W W^T (or W^T W) of d rows and p = 32, ||G|| <= ||G^p||_F^(1/p) <= d^(1/64) ||G||.
        """
        weight = self.module.weight.to(torch.promote_types(self.module.weight.dtype, torch.float32))
        if min(weight.shape) <= BOUNDED_UP_TO and (bound := _bound_of_square(weight)) is not None:
            return weight.new_tensor(bound)
        weight, scale = scaled(weight)
        if min(weight.shape) <= BOUNDED_UP_TO:
            return weight.new_tensor(_bound_of_square(weight) or 0.0) * scale**2
        return NORM_MARGIN * lanczos_norm(lambda v: weight.mT @ (weight @ v), weight.shape[1:], weight) * scale**2


def _bound_of_square(weight: Tensor) -> float | None:
    """||(W W^T)^p||_F^(1/p), p = 32; None where squares of the entries come near the ends of their range."""
    power = weight @ weight.mT if len(weight) < weight.shape[1] else weight.mT @ weight
    size, logarithm = float(power.norm()), 0.0
    if not SQUARES[0] < size < SQUARES[1]:
        return None
    for doubled in range(SQUARINGS):
        logarithm += math.log(size) / 2**doubled
        power = F.hardshrink(power / size, NEGLIGIBLE)  # or denormal numbers take most of the time
        power = power @ power
        size = float(power.norm())
    return math.exp(logarithm + math.log(size) / 2**SQUARINGS)


class Convolution(Affine):
    """A two-dimensional convolution with zero padding; positions count as samples of the least-squares problem."""

    module: nn.Conv2d

    def __init__(self, name: str, module: nn.Conv2d, reshapes: Sequence[nn.Module]) -> None:
        super().__init__(name, module, reshapes)
        self._geometry = (module.stride, paddings(module), module.dilation, module.groups)

    def adjoint(self, r: Tensor, like: Tensor) -> Tensor:
        """The transposed convolution of r."""
        shape = list(self.reshaped(like[:1]).shape)
        back: Tensor = conv2d_input([len(r), *shape[1:]], self.module.weight, r, *self._geometry)
        return back.reshape(like.shape)

    def gram(self, x: Tensor) -> Tensor:
        """As the base, with the patches of a few samples at a time."""
        x = self.reshaped(x)
        groups, _, size = self.shape
        gram = x.new_zeros(groups, size, size)
        each = max(1, UNFOLDED // max(1, x[:1].numel() * math.prod(self.module.kernel_size)))
        for part in x.split(each):
            patches = self._patches(part)
            gram += torch.einsum("ngkp,nglp->gkl", patches, patches)
        return gram

    def _patches(self, x: Tensor) -> Tensor:
        """(batch, groups, d, positions), with a row of ones where there is a bias."""
        stride, padding, dilation, groups = self._geometry
        patches = F.unfold(x, self.module.kernel_size, dilation, padding, stride).unflatten(1, (groups, -1))
        return torch.cat([patches, torch.ones_like(patches[:, :, :1])], 2) if self.has_bias else patches

    def moment(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of a convolution in its weights, with the sum over positions for the bias."""
        shape = list(self.module.weight.shape)
        inner = self._by_group(conv2d_weight(self.reshaped(x), shape, t, *self._geometry))
        return torch.cat([inner, self._by_group(t.sum((0, 2, 3)))], 2) if self.has_bias else inner

    def _by_group(self, parameter: Tensor) -> Tensor:
        """(out, ...) as (groups, out / groups, ...)."""
        groups = self.module.groups
        return parameter.detach().reshape(groups, len(parameter) // groups, -1)

    def weights(self) -> Tensor:
        """As the base."""
        weight, bias = self._by_group(self.module.weight), self.module.bias
        return weight.clone() if bias is None else torch.cat([weight, self._by_group(bias)], 2)

    def assign(self, weights: Tensor) -> None:
        """As the base."""
        v = weights[..., :-1] if self.has_bias else weights
        self.module.weight.data.copy_(v.reshape(self.module.weight.shape))
        if self.module.bias is not None:
            self.module.bias.data.copy_(weights[..., -1].flatten())

    def squared_norm(self, x: Tensor) -> Tensor:
        """As the base, 5 % above what Lanczos' iteration finds."""
        weight, scale = scaled(self.module.weight)
        shape = self.reshaped(x.new_zeros(1, *x.shape[1:])).shape

        def normal_map(v: Tensor) -> Tensor:
            image: Tensor = conv2d_input(shape, weight, F.conv2d(v, weight, None, *self._geometry), *self._geometry)
            return image

        return NORM_MARGIN * lanczos_norm(normal_map, shape, weight) * scale**2


def paddings(module: nn.Conv2d) -> tuple[int, int]:
    """Zeros at each side, vertical and horizontal.

    Raises:
        ValueError: ``padding="same"`` that is not the same on both sides.
    """
    if not isinstance(module.padding, str):
        vertical, horizontal = module.padding
        return int(vertical), int(horizontal)
    if module.padding == "valid":
        return 0, 0
    total = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    if any(amount % 2 for amount in total):
        raise ValueError('padding="same" with an even kernel pads one side more than the other')
    return total[0] // 2, total[1] // 2
