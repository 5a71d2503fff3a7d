"""Learned structuring functions as images."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from morphlightning.callbacks.figures.base import SIGNED, TrainingFigures, caption_of
from morphlightning.callbacks.figures.weights import Scale, draw_matrix, draw_tiles, layers_of, tiles_of, title
from morphlightning.errors import ConfigError
from morphlightning.layers import MorphLayer


class StructuringFunctions(TrainingFigures):
    """Draws the weights of every :class:`morphlightning.layers.MorphLayer`, one figure a layer.

    Windows are drawn as small images (1-D ones as stems, of 3-D ones the middle slice), with the origin marked. Dense
    layers that have as many inputs as an image has pixels are taken to see the image, and each unit's weights are drawn
    in its shape (``in_shape`` of the module); other dense layers are one heat map, units by inputs. The colours are
    symmetric about 0 and shared by all of a layer; missing weights (-inf) are hatched.

    Drawn before the first step, after every ``every_n_epochs`` epochs, and at the end of training. A model without such
    a layer gets a warning and no figure. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw after each such number of epochs.
        max_units: Draw at most so many structuring functions of a layer, the first ones; a heat map is drawn whole.

    Raises:
        ConfigError: An argument is below 1.
    """

    def __init__(self, every_n_epochs: int = 5, max_units: int = 16) -> None:
        super().__init__(every_n_epochs)
        if max_units < 1:
            raise ConfigError(f"StructuringFunctions: max_units must be 1 or more, got {max_units}")
        self.max_units = max_units

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As the base; warn of a model without weights to draw."""
        if not any(layers_of(pl_module)):
            rank_zero_warn(
                f"StructuringFunctions: {type(pl_module).__name__} holds no morphlightning.layers.MorphLayer, so there "
                "is nothing to draw."
            )
        super().on_train_start(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        """Publish a figure of each layer."""
        in_shape = tuple(getattr(pl_module, "in_shape", ()))
        for name, layer in layers_of(pl_module):
            figure = draw_layer(name, layer, in_shape, self.max_units, caption_of(moment))
            self.publish(trainer, f"structuring_functions/{name}", figure, moment)


def draw_layer(
    name: str, layer: MorphLayer, in_shape: tuple[int, ...] = (), max_units: int = 16, when: str = ""
) -> Figure:
    """Figure of a layer's weights.

    Args:
        name: The layer's name, for the title.
        layer: The layer.
        in_shape: Shape (channels, *space) of the images that the network sees, if there are any.
        max_units: How many structuring functions to draw at most.
        when: The moment, for the title.
    """
    weight = torch.where(layer.mask, layer.weight, math.nan).detach().float().cpu()
    present = weight[weight.isfinite()]
    limit = float(present.abs().max()) if present.numel() else 0.0
    scale = Scale(Normalize(-(limit or 1.0), limit or 1.0), colormaps[SIGNED], "weight")
    tiles = tiles_of(layer, weight, in_shape)
    figure = draw_matrix(weight.flatten(1).numpy(), scale) if tiles is None else draw_tiles(tiles, scale, max_units)
    title(figure, name, layer, when)
    return figure
