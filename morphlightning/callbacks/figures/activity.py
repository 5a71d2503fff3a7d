"""Which weights are alive."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from morphlightning.callbacks.figures.base import FigureCallback, caption_of, moment_of
from morphlightning.callbacks.figures.weights import Scale, Tiles, draw_matrix, draw_tiles, layers_of, tiles_of, title
from morphlightning.callbacks.touches import TouchCounts
from morphlightning.errors import ConfigError
from morphlightning.layers import MorphLayer

DEAD = "white"


class WeightActivity(TouchCounts, FigureCallback):
    """Draws how often each weight of every max-plus layer received a message in the epoch, one figure a layer.

    A weight receives a message where it wins a maximum (or is tied there, as the derivative rule says) whose output has
    one. Weights that received none all epoch are dead: they are white and cannot have moved by their gradients. Colours
    are logarithmic and shared by all of a layer; missing weights (-inf) are hatched. Weights are placed as by
    :class:`StructuringFunctions`, 1-D windows as rows. Counts are summed over micro-batches and processes.

    Costs one scatter and one collective of the weights' size a step. A model without such a layer gets a warning and no
    figure. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw after each such number of epochs.
        max_units: Draw at most so many units of a layer, the first ones; a heat map is drawn whole.

    Raises:
        ConfigError: An argument is below 1.
    """

    def __init__(self, every_n_epochs: int = 5, max_units: int = 16) -> None:
        super().__init__(every_n_epochs)
        if max_units < 1:
            raise ConfigError(f"WeightActivity: max_units must be 1 or more, got {max_units}")
        self.max_units = max_units

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask all layers for touch counts."""
        super().on_fit_start(trainer, pl_module)
        if not self.counting:
            rank_zero_warn(
                f"WeightActivity: {type(pl_module).__name__} holds no morphlightning.layers.MorphLayer, so there is "
                "nothing to draw."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the epoch's counts, now and again."""
        if not (self.due(trainer) and trainer.is_global_zero):
            return
        in_shape, moment = tuple(getattr(pl_module, "in_shape", ())), moment_of(trainer)
        for name, layer in layers_of(pl_module):
            if name in self.touches:
                figure = draw_activity(name, layer, self.touches[name], in_shape, self.max_units, caption_of(moment))
                self.publish(trainer, f"weight_activity/{name}", figure, moment)


def draw_activity(
    name: str, layer: MorphLayer, count: Tensor, in_shape: tuple[int, ...] = (), max_units: int = 16, when: str = ""
) -> Figure:
    """Figure of how many messages each weight of a layer received.

    Args:
        name: The layer's name, for the title.
        layer: The layer.
        count: Messages, in the shape of the weight.
        in_shape: Shape (channels, *space) of the images that the network sees, if there are any.
        max_units: How many units to draw at most.
        when: The moment, for the title.
    """
    mask, count = layer.mask.cpu(), count.cpu()
    values = torch.where(mask, count.clamp_min(0.5), torch.nan).float()
    scale = Scale(
        LogNorm(1, max(10.0, float(count.max()))),
        colormaps["viridis"].with_extremes(under=DEAD),
        "messages received in the epoch",
    )
    alive = count > 0
    dead = 1 - float(alive.sum() / mask.sum())
    dead_units = int((~alive.flatten(1).any(1)).sum())
    notes = ("white: dead, no message in the epoch",)
    tiles = tiles_of(layer, values, in_shape)
    if tiles is None:
        figure = draw_matrix(values.flatten(1).numpy(), scale, notes)
    else:
        figure = draw_tiles(_flat(tiles), scale, max_units, notes)
    share = f"dead: {100 * dead:.1f} % of the weights, {dead_units} of {len(count)} units"
    title(figure, name, layer, ": ".join(filter(None, [when, share])))
    return figure


def _flat(tiles: Tiles) -> Tiles:
    """Signals as images of one row, which the colours can show."""
    values, origin = tiles
    return Tiles(values[:, :, None], origin and (0, *origin)) if values.ndim == 3 else tiles
