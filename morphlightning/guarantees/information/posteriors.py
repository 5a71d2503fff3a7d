r"""Random weights as parametrizations of any module, each with its divergence to a prior in closed form.

``GaussianPosterior.of(linear)`` makes ``linear.weight`` random: a draw in training (one for all samples of a forward
pass), the mean in evaluation. The module keeps its class in all other respects, ``torch.nn.utils.parametrize`` does the
rest. Dilations have a layer of their own, :class:`morphlightning.layers.GumbelDilation`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from morphlightning.errors import ConfigError
from morphlightning.functional.divergences import EULER, gaussian_kl, gumbel_kl, uniform_kl
from morphlightning.interfaces import Posterior
from morphlightning.layers import MorphLayer


def posteriors(module: nn.Module) -> Iterator[tuple[str, Posterior]]:
    """Names and posteriors of all random weights below ``module``: those with a method ``kl``, each once.

    A parametrization goes by the name of the tensor, a layer by its own.
    """
    for name, child in module.named_modules():
        if isinstance(child, Posterior):
            of_a_tensor = isinstance(child, WeightPosterior)
            yield (name.replace("parametrizations.", "").rpartition(".")[0] if of_a_tensor else name), child


class WeightPosterior(nn.Module):
    """Base of laws of one tensor of independent weights, given by a location and a scale for each or for all.

    To be made with :meth:`of`; the location is the tensor as it was.

    Args:
        start: The tensor.
        **settings: Those of the class.
    """

    def __init__(self, start: Tensor, **settings: Any) -> None:
        super().__init__()
        self._list: tuple[Any, ...] = ()  # in a tuple, so that torch does not take it for a submodule

    @classmethod
    def of(cls, module: nn.Module, name: str = "weight", **settings: Any) -> Self:
        """Make a tensor of a module random.

        Args:
            module: Any module but the max-plus layers, whose weights are read more than once a pass.
            name: Name of the parameter.
            **settings: Those of the class.

        Raises:
            ConfigError: There is no such parameter, it is random already, or settings that cannot be.
        """
        if isinstance(module, MorphLayer):
            raise ConfigError(f"{cls.__name__}: {type(module).__name__} is a max-plus layer; use GumbelDilation")
        if parametrize.is_parametrized(module, name):
            raise ConfigError(f"{cls.__name__}: {name!r} of {type(module).__name__} is parametrized already")
        tensor = getattr(module, name, None)
        if not isinstance(tensor, nn.Parameter):
            has = ", ".join(key for key, _ in module.named_parameters(recurse=False)) or "none"
            raise ConfigError(f"{cls.__name__}: {type(module).__name__} has no parameter {name!r}; it has {has}")
        posterior = cls(tensor.detach(), **settings)
        parametrize.register_parametrization(module, name, posterior, unsafe=True)  # a check would draw numbers
        posterior._list = (module.parametrizations[name],)  # type: ignore[index]
        posterior.train(module.training)
        return posterior

    @property
    def location(self) -> Tensor:
        """The locations, a parameter."""
        location: Tensor = self._list[0].original
        return location

    def forward(self, location: Tensor) -> Tensor:
        """A draw in training, the mean in evaluation."""
        return self.sample(location) if self.training else self.mean(location)

    @abstractmethod
    def sample(self, location: Tensor) -> Tensor:
        """Weights drawn from the law, differentiable in location and scale."""

    def mean(self, location: Tensor) -> Tensor:
        """Their means."""
        return location

    @abstractmethod
    def kl(self) -> Tensor:
        """KL to the prior in nats, the sum over the weights."""


class GaussianPosterior(WeightPosterior):
    """Weights N(location, std^2), each std learned through its logarithm; the prior is N(0, prior_std^2).

    Args:
        start: The tensor.
        std: The standard deviations to start with.
        prior_std: That of the prior.

    Raises:
        ConfigError: A standard deviation that is not positive.

    Source: the variational posterior of Blundell et al. (arXiv 1505.05424); its divergence is derived in
    docs/guarantees.md.
    """

    roles: ClassVar[Mapping[str, str]] = {"log_std": "scale"}

    def __init__(self, start: Tensor, std: float = 0.01, prior_std: float = 1.0) -> None:
        super().__init__(start)
        _check_positive("GaussianPosterior", std=std, prior_std=prior_std)
        self.prior_std = prior_std
        self.log_std = nn.Parameter(torch.full_like(start, math.log(std)))

    def sample(self, location: Tensor) -> Tensor:
        """Draw."""
        return location + self.log_std.exp() * torch.randn_like(location)

    def kl(self) -> Tensor:
        """As the base."""
        return gaussian_kl(self.location, self.log_std.exp(), 0.0, self.prior_std).sum()


class GumbelPosterior(WeightPosterior):
    """Weights Gumbel(location, scale), one learned scale for all; the prior is Gumbel(prior_location, prior_scale).

    For modules that take maxima of their weights with something, which then are Gumbel variables themselves.

    Args:
        start: The tensor.
        scale: The scale to start with.
        prior_location: Location of the prior.
        prior_scale: Scale of the prior.

    Raises:
        ConfigError: A scale that is not positive.

    Source: derived in docs/guarantees.md.
    """

    roles: ClassVar[Mapping[str, str]] = {"log_scale": "scale"}

    def __init__(
        self, start: Tensor, scale: float = 0.1, prior_location: float = 0.0, prior_scale: float = 1.0
    ) -> None:
        super().__init__(start)
        _check_positive("GumbelPosterior", scale=scale, prior_scale=prior_scale)
        self.prior_location, self.prior_scale = prior_location, prior_scale
        self.log_scale = nn.Parameter(start.new_tensor(math.log(scale)))

    def sample(self, location: Tensor) -> Tensor:
        """Draw."""
        return location - self.log_scale.exp() * torch.empty_like(location).exponential_().log()

    def mean(self, location: Tensor) -> Tensor:
        """Location plus Euler's constant times the scale."""
        return location + EULER * self.log_scale.exp()

    def kl(self) -> Tensor:
        """As the base."""
        return gumbel_kl(self.location, self.log_scale.exp(), self.prior_location, self.prior_scale).sum()


class BoxPosterior(WeightPosterior):
    r"""Weights uniform on [location - radius, location + radius], each radius learned; the prior on [-bound, bound].

    The information is :math:`\sum \log (\text{bound} / \text{radius})`, whatever the locations. Boxes must lie in that
    of the prior: ``project_``, which our models call after each optimizer step, moves those back that left it.

    Args:
        start: The tensor.
        radius: The radii to start with.
        bound: Of the prior.

    Raises:
        ConfigError: A radius that is not positive, or a box that does not lie in that of the prior.

    Source: derived in docs/guarantees.md.
    """

    roles: ClassVar[Mapping[str, str]] = {"log_radius": "scale"}

    def __init__(self, start: Tensor, radius: float = 0.01, bound: float = 1.0) -> None:
        super().__init__(start)
        _check_positive("BoxPosterior", radius=radius, bound=bound)
        largest = float(start.abs().max()) + radius
        if not largest <= bound:
            raise ConfigError(
                f"BoxPosterior: boxes of radius {radius} reach {largest:.4g}, out of the prior's [-{bound}, {bound}]; "
                f"give a bound of at least {largest:.4g}"
            )
        self.bound = bound
        self.log_radius = nn.Parameter(torch.full_like(start, math.log(radius)))

    def sample(self, location: Tensor) -> Tensor:
        """Draw."""
        return location + self.log_radius.exp() * (2 * torch.rand_like(location) - 1)

    def kl(self) -> Tensor:
        """As the base; inf where a box has left the prior's."""
        radius = self.log_radius.exp()
        return uniform_kl(self.location - radius, self.location + radius, -self.bound, self.bound).sum()

    @torch.no_grad()
    def project_(self) -> None:
        """Move the boxes into that of the prior, with some room for rounding."""
        room = self.bound * (1 - 4 * torch.finfo(self.location.dtype).eps)
        self.log_radius.clamp_(max=math.log(room / 2))
        reach = room - self.log_radius.exp()
        self.location.copy_(self.location.clamp(-reach, reach))


def _check_positive(where: str, **values: float) -> None:
    wrong = [f"{name}={value}" for name, value in values.items() if not 0 < value < math.inf]
    if wrong:
        raise ConfigError(f"{where}: expected finite numbers > 0, got {', '.join(wrong)}")
