"""Plain networks that a configuration file can name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec
from morphlightning.models.backbones import activation_layer, check_sizes


class MultilayerPerceptron(nn.Sequential):
    """Linear layers with an activation between them, for inputs and outputs of any shape.

    An ``nn.Sequential``: Flatten, Linear, activation, ..., Linear, and Unflatten where ``out_shape`` has more than one
    axis. Its parameters have the names of that Sequential.

    Args:
        in_shape: Shape of one input.
        hidden: Widths of the hidden layers.
        out_shape: Shape of one output; None for that of the input.
        activation: Component of kind activations.

    Attributes:
        in_shape: Shape of one input.

    Raises:
        ConfigError: A shape or a width that is not positive.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        hidden: Sequence[int] = (64,),
        out_shape: Sequence[int] | None = None,
        activation: Spec = "relu",
    ) -> None:
        out_shape = tuple(in_shape if out_shape is None else out_shape)
        check_sizes("MultilayerPerceptron", in_shape=in_shape, hidden=hidden, out_shape=out_shape)
        if not in_shape or not out_shape:
            raise ConfigError(
                f"MultilayerPerceptron: in_shape={in_shape}, out_shape={out_shape}, expected sizes in both"
            )
        super().__init__(nn.Flatten())
        self.in_shape = tuple(in_shape)
        widths = [math.prod(in_shape), *hidden, math.prod(out_shape)]
        for before, after in pairwise(widths):
            if len(self) > 1:
                self.append(activation_layer(activation, before, -1))
            self.append(nn.Linear(before, after))
        if len(out_shape) > 1:
            self.append(nn.Unflatten(1, out_shape))
