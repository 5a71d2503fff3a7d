"""Where messages go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from morphlightning.callbacks.figures.base import DPI, MEDIUM, SMALL, FigureCallback, caption_of, moment_of
from morphlightning.callbacks.figures.weights import Array, layers_of
from morphlightning.layers import MorphLayer

PARTS = {
    "outputs": ("#0072B2", "outputs with a message"),
    "weights": ("#E69F00", "weights it reaches"),
    "inputs": ("#009E73", "inputs it reaches"),
}
"""What a message meets on its way back through a layer, in that order; colour and label."""
HEAT_MAPS = 4


@dataclass
class LayerMessages:
    """What the backward pass of one batch sent through one layer.

    Attributes:
        layer: The layer.
        shares: For ``"outputs"`` and ``"inputs"`` the share of (sample, unit) and (sample, input) that a message other
            than 0 reached, for ``"weights"`` the share of the weights that are there; one number a call.
        heat: Mean |message| that left at each input position (height, width), over samples and channels; a call each.
    """

    layer: MorphLayer
    shares: dict[str, list[Tensor]] = field(default_factory=lambda: {part: [] for part in PARTS})
    heat: list[Tensor] = field(default_factory=list)

    def share(self, part: str) -> float:
        """Mean over the calls; 0 where no message came at all."""
        found = self.shares[part]
        return float(torch.stack(found).mean()) if found else 0.0


class MessagePaths(FigureCallback):
    """Draws how much of each max-plus layer the messages of one training batch reach, and at which pixels they end.

    A message is what backpropagation sends: an output of the layer with a message passes it on to the candidates that
    win its maximum, one of its weights and one of its inputs away from ties. So the further from the loss, the fewer
    weights and inputs have one. For each layer, in the order of the forward pass, three bars (logarithmic) show the
    share of outputs, weights and inputs that messages reach. Layers that see images (or all pixels of ``in_shape``)
    get a map of mean |message| at their inputs, at most four of them, those nearest to the data.

    Drawn of the first batch of an epoch, of process 0, after its optimizer step. It looks on during the training step
    itself, by hooks that are gone afterwards. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw in each such number of epochs; the last of ``max_epochs`` is always drawn.
    """

    def __init__(self, every_n_epochs: int = 5) -> None:
        super().__init__(every_n_epochs)
        self._watch: _Watch | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to look on."""
        if batch_idx == 0 and trainer.is_global_zero and self.due(trainer):
            self._watch = _Watch(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look away, and draw."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.end()
        moment = moment_of(trainer)
        if any(messages.share("outputs") for messages in watch.seen.values()):
            self.publish(trainer, "message_paths", draw_paths(watch.seen, caption_of(moment)), moment)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look away."""
        if self._watch is not None:
            self._watch.end()


class _Watch:
    """Hooks on all max-plus layers that look at what their backward passes send."""

    def __init__(self, module: LightningModule) -> None:
        self._in_shape = tuple(getattr(module, "in_shape", ()))
        self.seen: dict[str, LayerMessages] = {}
        self._hooks: list[Any] = []
        for name, layer in layers_of(module):
            self._attach(layer, self.seen.setdefault(name, LayerMessages(layer)))

    def end(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _attach(self, layer: MorphLayer, messages: LayerMessages) -> None:
        def reached(part: str) -> Callable[[Tensor], None]:
            return lambda message: messages.shares[part].append((message != 0).float().mean())

        def weights(message: Tensor) -> None:
            messages.shares["weights"].append((message[layer.mask] != 0).float().mean())

        def inputs(message: Tensor) -> None:
            reached("inputs")(message)
            if (image := self._as_images(message)) is not None:
                messages.heat.append(image.detach().abs().flatten(0, -3).mean(0))

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not torch.is_grad_enabled():
                return None
            x, *rest = args
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()  # this layer's messages, no other's
            x.register_hook(inputs)
            return (x, *rest)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            if y.requires_grad:
                y.register_hook(reached("outputs"))

        self._hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        if layer.weight.requires_grad:
            self._hooks.append(layer.weight.register_hook(weights))

    def _as_images(self, message: Tensor) -> Tensor | None:
        if message.ndim >= 4:
            return message
        if len(self._in_shape) >= 2 and message.shape[-1] == math.prod(self._in_shape):
            return message.reshape(-1, *self._in_shape)
        return None


def draw_paths(seen: dict[str, LayerMessages], when: str = "") -> Figure:
    """Figure of the messages of one batch.

    Args:
        seen: Messages by layer, in the order of the forward pass.
        when: The moment, for the title.
    """
    maps = [(name, torch.stack(m.heat).mean(0).cpu().numpy()) for name, m in seen.items() if m.heat][:HEAT_MAPS]
    height = max(3.6, 0.75 * len(seen) + 1.9)
    rows = min(len(maps), max(1, int(height / 2.6)))
    widths = [6.4, 2.9 * math.ceil(len(maps) / rows)] if maps else [6.4]
    figure = Figure(figsize=(sum(widths), height), dpi=DPI, layout="constrained")
    bars, *heat = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_shares(bars.subplots(), seen)
    if maps:
        _draw_heat(heat[0], maps, rows)
    figure.suptitle(", ".join(filter(None, ["Where the messages of one batch go", when])), fontsize=MEDIUM)
    figure.supxlabel(
        "Messages come from the loss, behind the last layer, and travel upwards to the data.\n"
        "Outputs and inputs: of all samples; weights: of the batch as a whole.",
        fontsize=SMALL - 1,
    )
    return figure


def _draw_shares(axis: Axes, seen: dict[str, LayerMessages]) -> None:
    shares = {part: np.array([messages.share(part) for messages in seen.values()]) for part in PARTS}
    low = min(1e-2, *(10 ** math.floor(math.log10(0.7 * share)) for s in shares.values() for share in s if share > 0))
    place, height = np.arange(len(seen)), 0.26
    for number, (part, (color, label)) in enumerate(PARTS.items()):
        middle = place + (number - 1) * height
        axis.barh(middle, np.maximum(shares[part], low), height, color=color, label=label)
        for y, share in zip(middle, shares[part], strict=True):
            text = f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
            axis.text(max(share, low) * 1.05, y, text, va="center", fontsize=SMALL - 1)
    axis.set_xscale("log")
    axis.set_xlim(low, 1)
    ticks = [10.0**power for power in range(round(math.log10(low)), 1)]
    axis.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks], fontsize=SMALL)
    axis.xaxis.set_minor_formatter(NullFormatter())
    names = [f"{name or 'network'}\n{type(m.layer).__name__} {tuple(m.layer.weight.shape)}" for name, m in seen.items()]
    axis.set_yticks(place, names, fontsize=SMALL)
    axis.invert_yaxis()
    axis.set_xlabel("share", fontsize=SMALL)
    axis.legend(fontsize=SMALL, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, columnspacing=1)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_heat(panel: SubFigure, maps: list[tuple[str, Array]], rows: int) -> None:
    axes = panel.subplots(rows, math.ceil(len(maps) / rows), squeeze=False)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    for axis, (name, heat) in zip(axes.flat, maps, strict=False):
        high = float(heat.max()) or 1.0
        axis.patch.set_facecolor("black")
        norm = LogNorm(high / 1e3, high, clip=True)
        image = axis.imshow(np.ma.masked_less_equal(heat, 0), cmap="magma", norm=norm)
        axis.set_title(f"messages to the inputs of\n{name or 'network'}", fontsize=SMALL)
        axis.set(xticks=[], yticks=[])
        bar = panel.colorbar(image, ax=axis, shrink=0.9)
        bar.set_label("mean |message|; black: none", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL - 1)
