"""Invertible maps of points, their composition, and the density that they make of a Gaussian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real

Reduce = Callable[[Tensor], Tensor]
"""The mean of a tensor over all processes."""


class Bijection(nn.Module, ABC):
    """An invertible map of points x (N, dim) that knows how it changes volumes.

    Args:
        dim: Numbers of a point.

    Raises:
        ConfigError: ``dim`` is below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"{type(self).__name__}: dim={dim}, expected at least 1")
        self.dim = dim

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z."""

    @property
    def awaits_data(self) -> bool:
        """Whether :meth:`initialize` is still to be called."""
        return False

    def initialize(self, x: Tensor, reduce: Reduce = lambda mean: mean) -> None:
        """Take a start from points x (N, dim); ``reduce`` makes means over all processes of means over these."""

    def check(self, x: Tensor) -> None:
        """Raise ShapeError or DtypeError unless x are points (N, dim)."""
        where = type(self).__name__
        check_real(where, x=x)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(
                f"{where}: points have shape {tuple(x.shape)}, expected (N, {self.dim}); flatten images, and build the "
                "flow with the dim of the data"
            )


def in_own_dtype(network: nn.Module, x: Tensor) -> Tensor:
    """What a network, computing in the dtype of its parameters, makes of x, in the dtype of x.

    So points may travel in float64 between networks in float32. Those then see the same numbers, bit for bit but for
    rare ties of rounding, whether a point comes from the one side or from the other: round trips are exact.
    """
    like = next(network.parameters(), x)
    y: Tensor = network(x.to(like.dtype))
    return y.to(x.dtype)


class Composition(Bijection):
    """Bijections one after another; ``composition[k]`` is the k-th.

    Raises:
        ConfigError: There is none, or they are for points of different dim.
    """

    def __init__(self, *steps: Bijection) -> None:
        dims = [step.dim for step in steps]
        if not steps or len(set(dims)) > 1:
            raise ConfigError(f"Composition: expected one or more bijections of equal dim, got dims {dims}")
        super().__init__(dims[0])
        self.steps = nn.ModuleList(steps)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.steps)  # type: ignore[arg-type]

    def __getitem__(self, k: int) -> Bijection:
        return self.steps[k]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image under all, and the sum of the log-determinants."""
        self.check(x)
        total = x.new_zeros(len(x))
        for step in self:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        """The inverses in reverse order."""
        self.check(z)
        for step in reversed(list(self)):
            z = step.inverse(z)
        return z

    @property
    def awaits_data(self) -> bool:
        """Whether any of them does."""
        return any(step.awaits_data for step in self)

    def initialize(self, x: Tensor, reduce: Reduce = lambda mean: mean) -> None:
        """Each starts from what those before it make of x."""
        with torch.no_grad():
            for step in self:
                step.initialize(x, reduce)
                x, _ = step(x)


class Flow(nn.Module):
    r"""A density: that of points whose image under a bijection f is standard Gaussian.

    :math:`\log p(x) = \log N(f(x); 0, I) + \log |\det f'(x)|`.

    :meth:`transform`, :meth:`inverse` and :meth:`sample` carry points in float64 and round at the end to the dtype that
    they were given, so that a round trip in float32 loses what z in float32 cannot hold, no more.

    Args:
        bijection: From points to the Gaussian.

    Source: Rezende and Mohamed, arXiv 1505.05770; Papamakarios et al., arXiv 1912.02762.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    @property
    def dim(self) -> int:
        """Numbers of a point."""
        return self.bijection.dim

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density at points (N, dim), shape (N,).

        Raises:
            ShapeError: x are no such points.
            DtypeError: x is not floating-point.
        """
        self.bijection.check(x)
        z: Tensor
        log_det: Tensor
        z, log_det = self.bijection(x)
        gaussian: Tensor = -0.5 * (z * z).sum(1) - 0.5 * self.dim * math.log(2 * math.pi)
        return gaussian + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points (n, dim), on the device of the parameters; the generator may live on the CPU."""
        if n < 1:
            raise ConfigError(f"Flow.sample: n={n}, expected at least 1")
        like = next(self.parameters(), torch.empty(0))
        device = like.device if generator is None else generator.device
        z = torch.randn(n, self.dim, generator=generator, device=device, dtype=like.dtype)
        return self.inverse(z.to(like.device))

    def transform(self, x: Tensor) -> Tensor:
        """The images z (N, dim) of points, Gaussian where the density is right."""
        self.bijection.check(x)
        z: Tensor = self.bijection(x.double())[0]
        return z.to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """The points (N, dim) of images z."""
        self.bijection.check(z)
        return self.bijection.inverse(z.double()).to(z.dtype)
