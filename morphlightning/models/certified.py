"""Classification with certificates against perturbations of bounded sup norm."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from morphlightning.callbacks import BetaSchedule
from morphlightning.callbacks.beta_schedule import progress
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Hardenable, Spec
from morphlightning.layers import MeanShift, Shift, SoftSignedDilation, SoftSignedErosion
from morphlightning.metrics import CertifiedAccuracy
from morphlightning.models.backbones import check_images, check_in_shape, check_sizes
from morphlightning.models.losses import MarginHinge
from morphlightning.models.training import COMPONENTS, PluginTraining

START = {"name": "normal", "std": 0.2}
OPTIMIZER = {"name": "adam", "lr": 0.03, "betas": [0.9, 0.99], "eps": 1e-10, "schedule": "cosine"}


class CertifiedClassifier(PluginTraining):
    r"""Classifier of signed max-plus layers, 1-Lipschitz in the sup norm whatever its weights are.

    Signed dilations with shifts between them and a signed erosion at the end; no linear map. An image whose logit
    exceeds all others by more than 2 eps keeps its class under every perturbation of at most eps a pixel. It is trained
    for such margins with log-sum-exp in place of maxima, at an inverse temperature that rises
    (:class:`morphlightning.callbacks.BetaSchedule`) and is infinite in the last part of the training, so that what is
    certified is what was trained.

    Batches are (images, labels): images (batch, *in_shape) with values in ``clip``, labels (batch,) integers.
    ``forward`` gives logits (batch, num_classes). Validation and test log ``accuracy`` and ``certified@<eps>``, the
    share of samples with a margin above 2 eps, with confidence intervals
    (:class:`morphlightning.metrics.CertifiedAccuracy`).

    Args:
        in_shape: Shape of one image, (channels, height, width).
        num_classes: Number of classes.
        hidden: Widths of the hidden layers.
        eps: The radius that is certified, in the units of the data.
        train_eps: The radius that the loss asks for; None for 4/3 eps.
        clip: The least and the largest value of the data.
        beta: Inverse temperatures of the first and the last soft step.
        harden_at: Share of the training from which maxima are hard; 1 to leave the network soft.
        cross_entropy: Weight of the cross-entropy beside the hinge at the beginning and at the end (geometric).
        max_shift: Training images move by up to so many pixels along each axis, zeros come in; 0 for none.
        precision: Of the products behind log-sum-exp, ``"full"`` or ``"bfloat16"``.
        initializer: Component of kind initializers, for all layers.
        optimizer: Component of kind optimizers.
        regularizers: Components of kind regularizers.
        diagnostics: Components of kind diagnostics.

    Raises:
        ConfigError: Settings that do not fit together.
        PluginError: A component that is unknown, broken or given wrong parameters.

    Source: training 1-Lipschitz networks for margins, after Zhang et al., arXiv 2102.05363 and 2110.06850 (l-inf-dist
    networks); signed dilations and their relaxation by log-sum-exp are derived in docs/guarantees.md.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        hidden: Sequence[int] = (512, 512),
        eps: float = 0.3,
        train_eps: float | None = None,
        clip: tuple[float, float] = (0.0, 1.0),
        beta: tuple[float, float] = (10.0, 40.0),
        harden_at: float = 0.7,
        cross_entropy: tuple[float, float] = (1.0, 0.02),
        max_shift: int = 1,
        precision: str = "full",
        initializer: Spec = START,
        optimizer: Spec = OPTIMIZER,
        regularizers: Sequence[Spec] = (),
        diagnostics: Sequence[Spec] = (),
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        where = type(self).__name__
        check_in_shape(where, in_shape)
        check_sizes(where, hidden=hidden)
        if num_classes < 2:
            raise ConfigError(f"{where}: num_classes must be >= 2, got {num_classes}")
        if not 0 < eps < clip[1] - clip[0] < math.inf:
            raise ConfigError(
                f"{where}: eps={eps} must lie between 0 and the width of clip={tuple(clip)}; both in the units of the "
                "data, so 8/255 for eight grey levels of images in [0, 1]"
            )
        if min(cross_entropy) <= 0 or max_shift < 0:
            raise ConfigError(
                f"{where}: cross_entropy must be > 0 and max_shift >= 0, got {tuple(cross_entropy)} and {max_shift}"
            )
        given |= {"in_shape": list(in_shape), "hidden": list(hidden), "clip": list(clip), "beta": list(beta)}
        given["cross_entropy"] = list(cross_entropy)
        loss = MarginHinge(4 / 3 * eps if train_eps is None else train_eps, cross_entropy[0])
        super().__init__(loss, optimizer, regularizers, diagnostics)
        self.declare(given, **{name: kind for name, kind in COMPONENTS.items() if name in given})
        self.in_shape, self.num_classes, self.eps = tuple(in_shape), num_classes, eps
        self.clip = (clip[0], clip[1])
        self.cross_entropy, self.max_shift = tuple(cross_entropy), max_shift
        self.schedule = BetaSchedule(*beta, until=0.9 * harden_at, harden_at=harden_at)
        sizes = (math.prod(in_shape), *hidden, num_classes)
        self.network = certified_network(sizes, sum(clip) / 2, beta[0], precision, initializer)
        self.stage_metrics = nn.ModuleDict(
            {stage: CertifiedAccuracy(eps, "lipschitz", self.clip) for stage in ("val", "test")}
        )
        self.example_input_array = torch.zeros(2, *self.in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, *in_shape).

        Raises:
            ShapeError: The images have another shape.
            DtypeError: They are not floating-point.
        """
        check_images(self, x)
        logits: Tensor = self.network(x)
        return logits

    def hardened(self) -> nn.Sequential:
        """A copy of the network with hard layers alone, in evaluation mode: what certificates are for."""
        parts = {
            name: layer.harden() if isinstance(layer, Hardenable) else copy.deepcopy(layer)
            for name, layer in self.network.named_children()
        }
        return nn.Sequential(OrderedDict(parts)).eval()

    def configure_callbacks(self) -> list[Callback]:
        """As the base, with the schedule of inverse temperatures where the Trainer has none."""
        trainers: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        own = [] if any(isinstance(callback, BetaSchedule) for callback in trainers) else [self.schedule]
        return [*super().configure_callbacks(), *own]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """As the base; and set the weight of the cross-entropy."""
        super().on_train_batch_start(batch, batch_idx)
        first, last = self.cross_entropy
        loss: Any = self.data_loss
        loss.set_cross_entropy(first * (last / first) ** progress(self.trainer))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """As the base, on images that are moved."""
        images, *rest = batch
        return super().training_step((moved(images, self.max_shift), *rest), batch_idx)

    def evaluate(self, batch: Any, stage: str) -> None:
        """Loss, accuracy and certified accuracy."""
        images, labels = batch[:2]
        metric: Any = self.stage_metrics[stage]
        metric.update(self.network, images, labels)
        self.log(f"{stage}/loss", self.data_loss(self(images), labels), sync_dist=True, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        """Log what was certified."""
        self._log_certified("val")

    def on_test_epoch_end(self) -> None:
        """Log what was certified."""
        self._log_certified("test")

    def _log_certified(self, stage: str) -> None:
        metric: Any = self.stage_metrics[stage]
        for name, value in metric.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar="/" not in name)


def certified_network(
    sizes: Sequence[int], centre: float, beta: float, precision: str, initializer: Spec
) -> nn.Sequential:
    """Flatten, centre, then soft signed dilations and mean shifts, and a soft signed erosion."""
    options: dict[str, Any] = {"beta": beta, "precision": precision, "initializer": initializer}
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), centre=Shift(centre))
    *hidden, (before, classes) = pairwise(sizes)
    for number, (inside, outside) in enumerate(hidden, 1):
        parts[f"dilation{number}"] = SoftSignedDilation(inside, outside, **options)
        parts[f"shift{number}"] = MeanShift(outside)
    parts["erosion"] = SoftSignedErosion(before, classes, **options)
    return nn.Sequential(parts)


def moved(images: Tensor, by: int) -> Tensor:
    """Each image (batch, channels, height, width) moved by up to ``by`` pixels along each axis; zeros come in."""
    if not by:
        return images
    windows = F.pad(images, (by,) * 4).unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    down, right = torch.randint(2 * by + 1, (2, len(images)), device=images.device)
    return windows[torch.arange(len(images), device=images.device), :, down, right]
