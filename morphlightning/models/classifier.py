"""Image classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec
from morphlightning.models import losses
from morphlightning.models.backbones import (
    Pool,
    check_images,
    check_in_shape,
    check_sizes,
    classifier_head,
    convolutional_stages,
    dense_stages,
    features_of,
)
from morphlightning.models.training import COMPONENTS, PluginTraining


class MorphologicalClassifier(PluginTraining):
    """Classifier with morphological layers: convolutional stages, dense stages, head - each may be left out.

    The default is two stages of convolution and morphological pooling with a linear head. ``channels=()`` with
    ``hidden=(100,)`` is the dense network: dilations and erosions of the pixels, then linear. ``channels=()`` with
    ``head="max_plus"`` is linear, then max-plus.

    Batches are (images, labels): images (batch, *in_shape), labels (batch,) integers. ``forward`` gives logits
    (batch, num_classes), ``predict_step`` class probabilities.

    Args:
        in_shape: Shape of one image, (channels, height, width).
        num_classes: Number of classes.
        channels: Widths of the convolutional stages, each a 3x3 convolution, the activation and pooling by 2.
        hidden: Widths of the dense stages, each that many dilations and as many erosions.
        head: ``"linear"`` or ``"max_plus"``.
        head_units: Filters before a max-plus head.
        pool: ``"morphological"``, or ``"max"`` or ``"average"`` for the same network without morphology.
        backbone: A module of your own in place of both kinds of stages: (batch, *in_shape) to (batch, ...). It is not
            part of the hyperparameters; give it again to ``load_from_checkpoint``.
        activation: Component of kind activations.
        derivative: Component of kind derivatives, for all morphological layers.
        heuristic: Component of kind heuristics or a composition such as ``"best+count_normalized"``.
        initializer: Component of kind initializers, for all morphological layers but the head.
        optimizer: Component of kind optimizers.
        regularizers: Components of kind regularizers.
        diagnostics: Components of kind diagnostics.
        loss: ``"cross_entropy"``, ``"multi_margin_loss"``, ``{"name": "margin_hinge", "eps": ...}`` with what
            :class:`morphlightning.models.MarginHinge` takes, or a callable (logits, labels) to a mean over the batch;
            a callable, too, has to be given again to ``load_from_checkpoint``.

    Raises:
        ConfigError: Settings that do not fit together.
        PluginError: A component that is unknown, broken or given wrong parameters.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32),
        hidden: Sequence[int] = (),
        head: Literal["linear", "max_plus"] = "linear",
        head_units: int = 150,
        pool: Pool = "morphological",
        backbone: nn.Module | None = None,
        activation: Spec = "relu",
        derivative: Spec = "first",
        heuristic: Spec = "plain",
        initializer: Spec = "upper",
        optimizer: Spec = "adam",
        regularizers: Sequence[Spec] = (),
        diagnostics: Sequence[Spec] = (),
        loss: str | Mapping[str, Any] | losses.Loss = "cross_entropy",
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if isinstance(backbone, str):  # what a checkpoint holds in its place
            raise ConfigError(
                f"MorphologicalClassifier: this model has a backbone of its own ({backbone}), which hyperparameters do "
                "not hold; pass it again: load_from_checkpoint(path, backbone=...)"
            )
        where = type(self).__name__
        check_in_shape(where, in_shape)
        check_sizes(where, channels=channels, hidden=hidden, head_units=head_units)
        if num_classes < 2:
            raise ConfigError(f"{where}: num_classes must be >= 2, got {num_classes}")
        given |= {"in_shape": list(in_shape), "channels": list(channels), "hidden": list(hidden)}
        given |= {"backbone": backbone and type(backbone).__qualname__, "loss": losses.plain(loss)}
        super().__init__(losses.resolve(loss, losses.CLASSIFICATION), optimizer, regularizers, diagnostics)
        self.declare(given, **COMPONENTS)
        self.in_shape, self.num_classes = tuple(in_shape), num_classes
        rules = (activation, derivative, heuristic, initializer)
        if backbone is None:
            backbone = nn.Sequential()
            if channels:
                backbone.append(convolutional_stages(self.in_shape, channels, pool, *rules))
            backbone.append(nn.Flatten())
            if hidden:
                backbone.append(dense_stages(features_of(backbone, self.in_shape), hidden, *rules))
        self.backbone = backbone
        features = features_of(backbone, self.in_shape)
        self.head = classifier_head(head, features, num_classes, head_units, derivative, heuristic)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "calibration_error": MulticlassCalibrationError(num_classes),
            }
        )
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.stage_metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})
        self.example_input_array = torch.zeros(2, *self.in_shape)

    @property
    def network(self) -> nn.Sequential:
        """The network without its training: images to logits."""
        return nn.Sequential(self.backbone, nn.Flatten(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, *in_shape).

        Raises:
            ShapeError: The images have another shape.
            DtypeError: They are not floating-point.
        """
        check_images(self, x)
        logits: Tensor = self.head(self.backbone(x).flatten(1))
        return logits

    def loss(self, output: Tensor, target: Tensor, inputs: Tensor, prefix: str = "train") -> Tensor:
        """As the base, with the training accuracy."""
        self.train_accuracy(output.detach(), target)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(inputs))
        return super().loss(output, target, inputs, prefix)

    def evaluate(self, batch: Any, stage: str) -> None:
        """Loss, accuracy and calibration error."""
        inputs, target = batch[:2]
        logits = self(inputs)
        self.log(f"{stage}/loss", self.data_loss(logits, target), sync_dist=True, batch_size=len(inputs), prog_bar=True)
        metrics: MetricCollection = self.stage_metrics[stage]  # type: ignore[assignment]
        metrics.update(logits.softmax(-1), target)
        self.log_dict(metrics, batch_size=len(inputs), prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities (batch, num_classes)."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities: Tensor = self(inputs).softmax(-1)
        return probabilities
