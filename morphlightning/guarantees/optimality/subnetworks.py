"""Subnetworks that are positively homogeneous in their parameters: gain form, factors, neurons, any torch module."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality.homogeneity import Homogeneous, Parameters, check_homogeneous
from morphlightning.guarantees.optimality.penalties import PENALTIES, block_norms, penalty_for
from morphlightning.layers import MorphLayer

SAMPLES = 3
"""Of random data, to check homogeneity with."""


class Gain(nn.Module):
    r"""The gain (perspective) form of a morphological network: net(|s| x; W), of degree 1 in (s, W) at any depth.

    Dilations, erosions and their compositions are homogeneous of degree 1 in x and W together, but not in W alone, and
    it is W alone that a theorem about training needs. One more scalar repairs it: for s > 0

    .. math:: \phi(x; s, W) = \mathrm{net}(s x; W) = s\, \mathrm{net}(x; W / s), \qquad
              \phi(x; a s, a W) = a\, \phi(x; s, W), \quad a \ge 0.

    Missing weights (-inf) stay missing. The absolute value keeps the operator increasing. Soft layers do not qualify.

    Args:
        network: net, of morphological layers without soft ones.

    Source: derived here.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Net of |s| x."""
        y: Tensor = self.network(self.gain.abs() * x)
        return y


class HomogeneousNetwork:
    r"""A torch module as a subnetwork phi(x; K): homogeneous of a degree in its parameters, which is checked.

    Examples of degree 2, of one unit with its weights to the outputs::

        nn.Sequential(nn.Linear(d, 1), nn.ReLU(), nn.Linear(1, outputs, bias=False))
        nn.Sequential(Gain(Dilation(d, 1)), nn.Linear(1, outputs, bias=False))

    of degree 1: ``Gain(nn.Sequential(Dilation(d, 8), Erosion(8, outputs)))``; of degree L: L linear layers or
    convolutions with ReLU, pooling and flattening between them, with a bias in the first one alone.

    The module is a template: it is copied, its own parameters are never used nor trained.

    Args:
        network: The module; it must not use random numbers or keep running statistics.
        in_shape: Shape of one sample.
        degree: p.
        theta: The penalty, a name of :data:`PENALTIES`; None for ``norm`` at degree 1, ``half_square`` at 2, else
            ``power``. Blocks are the children of the outermost Sequential that have parameters.

    Raises:
        ConfigError: It has no parameters, the penalty has another degree, or phi is not homogeneous of that degree.

    Source: the setting of Haeffele and Vidal, arXiv 1506.07540 and 1712.04741.
    """

    def __init__(self, network: nn.Module, in_shape: Sequence[int], degree: int, theta: str | None = None) -> None:
        template = copy.deepcopy(network).eval().requires_grad_(False)
        self._template, self.in_shape, self._degree = template, tuple(in_shape), degree
        self._shapes = {name: tuple(p.shape) for name, p in template.named_parameters()}
        if not self._shapes:
            raise ConfigError(f"HomogeneousNetwork: {type(network).__name__} has no parameters")
        self._masks = {
            f"{path}.weight".lstrip("."): layer.mask.cpu()
            for path, layer in template.named_modules()
            if isinstance(layer, MorphLayer)
        }
        self._blocks = _blocks(template, list(self._shapes))
        self._theta = penalty_for(theta, degree, len(self._blocks))
        check_homogeneous(self, torch.randn(SAMPLES, *self.in_shape, generator=torch.Generator().manual_seed(1)))

    @property
    def degree(self) -> int:
        """As the capability says."""
        return self._degree

    @property
    def theta_name(self) -> str:
        """As the capability says."""
        return self._theta

    @property
    def blocks(self) -> Sequence[Sequence[str]]:
        """As the capability says."""
        return [[_key(name) for name in block] for block in self._blocks]

    def phi(self, x: Tensor, stacked: Parameters) -> Tensor:
        """The network's outputs, by vmap."""
        buffers = {name: buffer.to(x.device) for name, buffer in self._template.named_buffers()}

        def one(parameters: Parameters) -> Tensor:
            tensors = {name: parameters[_key(name)] for name in self._shapes}
            output: Tensor = functional_call(self._template, tensors | buffers, (x,))
            return output

        outputs: Tensor = vmap(one)(dict(stacked))
        return outputs

    def theta(self, stacked: Parameters) -> Tensor:
        """The penalty of the norms of the blocks."""
        return PENALTIES[self._theta].value(block_norms([[stacked[k] for k in block] for block in self.blocks]))

    def random(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Each block uniform on a sphere; 0 where a weight is missing."""
        drawn = {
            _key(name): torch.randn(count, *shape, generator=generator) * self._masks.get(name, 1)
            for name, shape in self._shapes.items()
        }
        found = on_spheres(self, drawn)
        return scaled(found, self.theta(found) ** (-1 / self.degree))

    def __repr__(self) -> str:
        """Class, degree and penalty."""
        return f"{type(self).__name__}({type(self._template).__name__}, degree={self.degree}, theta={self._theta!r})"


def on_spheres(subnetwork: Homogeneous, stacked: Parameters) -> dict[str, Tensor]:
    """Stacked parameters with each block scaled to norm 1; what is 0 stays 0."""
    found: dict[str, Tensor] = {}
    for block in subnetwork.blocks:
        norms = block_norms([[stacked[name] for name in block]])[:, 0]
        found |= scaled({name: stacked[name] for name in block}, torch.where(norms > 0, 1 / norms, 0))
    return found


def scaled(stacked: Parameters, factors: Tensor) -> dict[str, Tensor]:
    """Stacked parameters (count, ...), each subnetwork times its factor (count,)."""
    return {name: t * factors.to(t).view(-1, *[1] * (t.ndim - 1)) for name, t in stacked.items()}


def _key(name: str) -> str:
    """A parameter's name as torch's ParameterDict takes it."""
    return name.replace(".", "/")


def _blocks(template: nn.Module, names: Sequence[str]) -> list[list[str]]:
    if not isinstance(template, nn.Sequential):
        return [list(names)]
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition(".")[0], []).append(name)
    return list(found.values())
