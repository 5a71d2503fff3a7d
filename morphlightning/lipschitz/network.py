"""Networks with a Lipschitz constant that holds for every value of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import LipschitzSpec, Spec
from morphlightning.lipschitz.layers import GroupSort, Padding, SpectralConv2d, SpectralLinear
from morphlightning.lipschitz.spec import certify

Layer = Literal["spectral", "orthogonal"]
_BOUNDED: dict[str, dict[str, Any]] = {
    "linear_spline": {"constraint": "lipschitz"},
    "nonuniform_spline": {"constraint": "lipschitz"},
    "prelu": {"limit": 1.0},
}
"""What activations whose slopes are free in general are asked for, unless their specification says it."""


class LipschitzNetwork(nn.Sequential):
    """Convolutions, then linear layers, with activations between them; Lipschitz in l2 with a constant that is chosen.

    An ``nn.Sequential``. The constant holds before, while and after it is trained by any optimizer: each linear map is
    divided by its certified norm in each pass, and nothing else is kept in its state than parameters.

    Args:
        in_shape: Shape of one input; (channels, height, width) where there are convolutions.
        hidden: Widths of the hidden linear layers.
        out_features: Number of outputs.
        channels: Widths of the convolutions before them.
        activation: A component of kind activations, by name or as a mapping (linear splines and PReLU are asked for
            slopes in [-1, 1] unless the mapping bounds them), ``"group_sort"``, or a function of ``channels`` and
            ``channel_dim``.
        layer: ``spectral`` (a matrix over its norm), or ``orthogonal`` hidden linear layers, by
            ``torch.nn.utils.parametrizations.orthogonal``, whose norms are 1 up to rounding.
        constant: The Lipschitz constant. The last layer has it, the others have 1.
        kernel_size: Of the convolutions.
        stride: Of the convolutions.
        padding: Of the convolutions, see :class:`SpectralConv2d`.

    Raises:
        ConfigError: Sizes that cannot work, or an activation with a constant above 1.
        NotCertifiable: An activation about which nothing is known.

    Source: 1-Lipschitz networks with GroupSort (Anil et al. 2019, arXiv 1811.05381) and with linear splines (Ducotterd
    et al. 2024, arXiv 2210.16222); the norms of convolutions are derived here.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        out_features: int = 1,
        channels: Sequence[int] = (),
        activation: Spec | Callable[..., nn.Module] = "linear_spline",
        layer: Layer = "spectral",
        constant: float = 1.0,
        kernel_size: int = 3,
        stride: int = 2,
        padding: Padding = "full",
    ) -> None:
        super().__init__()
        sizes = (*in_shape, *hidden, *channels, out_features)
        if not in_shape or any(size < 1 for size in sizes) or (channels and len(in_shape) != 3):
            raise ConfigError(
                f"LipschitzNetwork: in_shape={tuple(in_shape)}, hidden={tuple(hidden)}, channels={tuple(channels)}, "
                f"out_features={out_features}: expected positive sizes, and (channels, height, width) for convolutions"
            )
        if layer not in ("spectral", "orthogonal"):
            raise ConfigError(f"LipschitzNetwork: layer must be 'spectral' or 'orthogonal', got {layer!r}")
        self.in_shape = tuple(in_shape)
        build = _activation(activation)
        shape = self.in_shape
        for width in channels:
            convolution = SpectralConv2d(shape[0], width, kernel_size, stride=stride, padding=padding)
            shape = (width, *(convolution.output_size(size) for size in shape[1:]))
            if min(shape) < 1:
                raise ConfigError(f"LipschitzNetwork: images of {self.in_shape[1:]} are too small for {convolution}")
            self.extend([convolution, build(channels=width, channel_dim=1)])
        self.append(nn.Flatten())
        before = math.prod(shape)
        linear = SpectralLinear if layer == "spectral" else _orthogonal_linear
        for width in hidden:
            self.extend([linear(before, width), build(channels=width, channel_dim=-1)])
            before = width
        self.append(SpectralLinear(before, out_features, constant=constant))
        if not self.lipschitz_spec().constant <= constant * (1 + 1e-4):
            raise ConfigError(f"LipschitzNetwork: its layers make more than {constant}:\n{certify(self)}")

    def lipschitz_spec(self) -> LipschitzSpec:
        """The certified constant with the parameters as they are: the product of those of the layers, in float64."""
        return certify(self).spec


def _orthogonal_linear(in_features: int, out_features: int) -> nn.Module:
    return orthogonal(nn.Linear(in_features, out_features))


def _activation(spec: Spec | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A function of channels and channel_dim."""
    if callable(spec):
        return spec
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(given.get("name")).rpartition(":")[2]
    if name == "group_sort":
        return lambda channels, channel_dim: GroupSort(given.get("size", 2), channel_dim)
    return partial(registry.build, "activations", _BOUNDED.get(name, {}) | given)
