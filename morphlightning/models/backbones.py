"""Networks of our models, composed from layers; ordinary nn.Modules that can be used on their own."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.interfaces import Spec
from morphlightning.layers import Dilation, DilationErosion, MorphPool2d

Pool = Literal["morphological", "max", "average"]
POOLS: tuple[Pool, ...] = ("morphological", "max", "average")


def activation_layer(activation: Spec, channels: int, channel_dim: int) -> nn.Module:
    """One pointwise module for ``channels`` channels along ``channel_dim``."""
    module: nn.Module = registry.build("activations", activation, channels=channels, channel_dim=channel_dim)
    return module


def pooling_layer(pool: Pool, channels: int, derivative: Spec, heuristic: Spec, initializer: Spec) -> nn.Module:
    """Pooling by 2 of ``channels`` channels."""
    if pool == "morphological":
        return MorphPool2d(channels, 3, 2, 1, derivative=derivative, heuristic=heuristic, initializer=initializer)
    if pool == "max":
        return nn.MaxPool2d(3, 2, 1)
    if pool == "average":
        return nn.AvgPool2d(3, 2, 1)
    raise ConfigError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")


def convolutional_stages(
    in_shape: tuple[int, ...],
    channels: Sequence[int],
    pool: Pool,
    activation: Spec,
    derivative: Spec,
    heuristic: Spec,
    initializer: Spec,
) -> nn.Sequential:
    """For each stage a 3x3 convolution, the activation, and pooling by 2."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_shape[0]
    for number, width in enumerate(channels, 1):
        stages[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1)
        stages[f"activation{number}"] = activation_layer(activation, width, 1)
        stages[f"pool{number}"] = pooling_layer(pool, width, derivative, heuristic, initializer)
        before = width
    return nn.Sequential(stages)


def dense_stages(
    in_features: int, hidden: Sequence[int], activation: Spec, derivative: Spec, heuristic: Spec, initializer: Spec
) -> nn.Sequential:
    """Dilations and erosions side by side; between two such layers a linear map and the activation.

    Without the linear maps between them max-plus layers alone are not universal (arXiv 2505.09710).
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_features
    for number, width in enumerate(hidden, 1):
        if number > 1:
            stages[f"linear{number}"] = nn.Linear(before, width)
            stages[f"activation{number}"] = activation_layer(activation, width, -1)
            before = width
        rules = {"derivative": derivative, "heuristic": heuristic, "initializer": initializer}
        stages[f"morph{number}"] = DilationErosion(before, width, **rules)
        before = 2 * width
    return nn.Sequential(stages)


def classifier_head(
    head: str, in_features: int, num_classes: int, units: int, derivative: Spec, heuristic: Spec
) -> nn.Module:
    """``linear``, or ``max_plus``: a linear layer of ``units`` filters and a dilation with a class-specific start."""
    if head == "linear":
        return nn.Linear(in_features, num_classes)
    if head == "max_plus":
        dilation = Dilation(units, num_classes, derivative=derivative, heuristic=heuristic, initializer="sparse")
        return nn.Sequential(OrderedDict(filters=nn.Linear(in_features, units), dilation=dilation))
    raise ConfigError(f"head must be 'linear' or 'max_plus', got {head!r}")


def features_of(module: nn.Module, in_shape: tuple[int, ...]) -> int:
    """Number of values that ``module`` makes of one input, found by running it on zeros.

    Raises:
        ConfigError: It does not run on inputs of this shape.
    """
    like = next(module.parameters(), torch.empty(0))
    training = module.training
    try:
        with torch.no_grad():
            y = module.eval()(torch.zeros(1, *in_shape, dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        raise ConfigError(
            f"the backbone {type(module).__name__} does not run on a batch of shape {(1, *in_shape)}: {error}. Pass "
            "in_shape of your data, or a backbone that takes it"
        ) from error
    finally:
        module.train(training)
    return math.prod(y.shape[1:])


def check_sizes(where: str, **sizes: int | Sequence[int]) -> None:
    """Raise ConfigError unless all numbers are positive integers."""
    for name, given in sizes.items():
        for size in [given] if isinstance(given, int) else given:
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{where}: {name}={given!r}, expected positive integers")


def check_images(model: Any, x: Tensor) -> None:
    """Raise ShapeError or DtypeError unless these are images (batch, *in_shape) of a model."""
    where = type(model).__name__
    check_real(where, x=x)
    if tuple(x.shape[1:]) != model.in_shape:
        raise ShapeError(
            f"{where}: images have shape {tuple(x.shape[1:])} after the batch axis, the model was built for "
            f"in_shape={model.in_shape}; pass in_shape of your data"
        )


def check_in_shape(where: str, in_shape: Sequence[int]) -> None:
    """Raise ConfigError unless this is (channels, height, width)."""
    check_sizes(where, in_shape=in_shape)
    if len(in_shape) != 3:
        raise ConfigError(f"{where}: in_shape={tuple(in_shape)}, expected (channels, height, width)")
