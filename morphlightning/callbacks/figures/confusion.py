"""Which classes a classifier confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from morphlightning.callbacks.figures.base import (
    DPI,
    MEDIUM,
    SMALL,
    FigureCallback,
    caption_of,
    moment_of,
    pair_of,
    stage_of,
    unobserved,
)
from morphlightning.errors import ConfigError

LEGIBLE = 20  # classes up to which each cell shows its count


class ConfusionMatrix(FigureCallback):
    """Draws the confusion matrix of validation and test: counts, the share of each true class, and its recall.

    Batches are (input, label) with labels (B,), and the module's ``forward`` gives logits (B, classes). Counts are
    summed over all processes by torchmetrics. Costs one more forward pass over the first loader in the epochs that are
    drawn. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw after each such number of epochs, if there is a validation; and after the last of
            ``max_epochs``.
        num_classes: Number of classes; None for that of the data module or of the module.
        class_names: Names of the classes; None for those of the data module, or numbers.

    Raises:
        ConfigError: An argument is out of its range; or, from the hooks, the number of classes is unknown, or batches
            or outputs are not those of a classifier.
    """

    def __init__(
        self, every_n_epochs: int = 1, num_classes: int | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__(every_n_epochs)
        if num_classes is not None and num_classes < 2:
            raise ConfigError(f"ConfusionMatrix: num_classes must be 2 or more, got {num_classes}")
        self.num_classes, self.class_names = num_classes, class_names
        self._names: list[str] = []
        self._metric: MulticlassConfusionMatrix | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out what the classes are."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            return
        data = getattr(trainer, "datamodule", None)
        known = (self.num_classes, getattr(data, "num_classes", None), getattr(pl_module, "num_classes", None))
        classes = next((int(number) for number in known if number), 0)
        if classes < 2:
            raise ConfigError(
                f"ConfusionMatrix: neither the data module nor {type(pl_module).__name__} says how many classes there "
                "are (num_classes). Pass ConfusionMatrix(num_classes=...), or leave it out where there are no classes"
            )
        names = self.class_names or getattr(data, "class_names", None) or range(classes)
        if len(names) != classes:
            raise ConfigError(
                f"ConfusionMatrix: {len(names)} class_names for {classes} classes; give one name for each class"
            )
        self._names = [str(name) for name in names]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._metric = MulticlassConfusionMatrix(len(self._names)).to(pl_module.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count; also in the sanity check, so that what does not fit is found early."""
        if self._metric is None or dataloader_idx or not (self.due(trainer) or trainer.sanity_checking):
            return
        inputs, labels = pair_of(self, batch)
        with unobserved(trainer, pl_module):
            logits = pl_module(inputs)
        self._check(logits, labels)
        self._metric.update(logits.float(), labels)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum the counts of all processes, and draw."""
        metric, self._metric = self._metric, None
        if metric is None or not self.due(trainer) or trainer.sanity_checking:
            return
        counts = metric.compute()  # a collective: on every process
        if trainer.is_global_zero:
            stage, moment = stage_of(trainer), moment_of(trainer)
            title = ", ".join(filter(None, [f"Confusion matrix, {stage}", caption_of(moment)]))
            figure = draw_confusion(counts.cpu(), self._names, title)
            self.publish(trainer, f"confusion_matrix/{stage}", figure, moment)

    on_test_end = on_validation_end

    def _check(self, logits: Any, labels: Tensor) -> None:
        classes = len(self._names)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        integers = not (labels.is_floating_point() or labels.is_complex())
        if labels.ndim != 1 or not integers or shape != (len(labels), classes):
            raise ConfigError(
                f"ConfusionMatrix: forward gave {shape}, labels are {labels.dtype} {tuple(labels.shape)}; expected "
                f"logits (B, {classes}) and integer labels (B,). This callback is for classifiers; leave it out of "
                "other runs"
            )


def draw_confusion(counts: Tensor, names: Sequence[str], title: str = "") -> Figure:
    """Figure of a confusion matrix.

    Args:
        counts: Samples (true class, predicted class).
        names: Names of the classes.
        title: Title; the accuracy and the number of samples are added.
    """
    classes = len(names)
    total = counts.sum(1)
    share = counts / total.clamp_min(1)[:, None]
    recall = share.diagonal()
    side = min(10.0, max(3.2, 0.5 * classes))
    margin = 0.075 * max(map(len, names))
    figure = Figure(figsize=(side + 2.2 + margin, side + 1.1 + margin), dpi=DPI, layout="constrained")
    matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=[side, 1.2])
    matrix.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if classes <= LEGIBLE:
        for (true, predicted), count in _cells(counts):
            color = "white" if share[true, predicted] > 0.55 else "black"
            matrix.text(predicted, true, str(count), ha="center", va="center", fontsize=SMALL, color=color)
    step = max(1, classes // LEGIBLE)
    ticks = range(0, classes, step)
    long = max(map(len, names)) > 3
    matrix.set_xticks(
        ticks, [names[k] for k in ticks], fontsize=SMALL, rotation=45 if long else 0, ha="right" if long else "center"
    )
    matrix.set_yticks(ticks, [names[k] for k in ticks], fontsize=SMALL)
    matrix.set_xlabel("predicted", fontsize=MEDIUM)
    matrix.set_ylabel("true", fontsize=MEDIUM)
    bars.barh(range(classes), recall.numpy(), color="#0072B2", height=0.7)
    if classes <= LEGIBLE:
        for k in range(classes):
            text = f"{100 * float(recall[k]):.0f} %" if total[k] else "none"
            bars.text(0.05, k, text, va="center", fontsize=SMALL, color="white" if recall[k] > 0.5 else "black")
    bars.set(xlim=(0, 1), xticks=[0, 1])
    bars.set_xlabel("recall", fontsize=MEDIUM)
    bars.tick_params(labelsize=SMALL, left=False, labelleft=False)
    accuracy = float(counts.diagonal().sum() / total.sum().clamp_min(1))
    figure.suptitle(f"{title}\naccuracy {100 * accuracy:.1f} % of {int(total.sum())} samples", fontsize=MEDIUM)
    return figure


def _cells(counts: Tensor) -> list[tuple[tuple[int, int], int]]:
    """The cells that are not empty, with their counts."""
    return [((int(i), int(j)), int(counts[i, j])) for i, j in counts.nonzero()]
