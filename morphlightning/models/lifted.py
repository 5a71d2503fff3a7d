"""A network of one's own as a LightningModule: for lifted training, and for any other optimizer by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image import PeakSignalNoiseRatio

from morphlightning.bregman import CrossEntropy, OutputLoss, SquaredError, output_loss
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec
from morphlightning.models.losses import plain
from morphlightning.models.training import PluginTraining


class LiftedModule(PluginTraining):
    """Trains a network of yours, by a lifted loop or by any other component of kind optimizers.

    Batches are (inputs, targets). The network stays as it is: what is trained is an ordinary module, which runs and
    exports without morphlightning. Lifted training asks for an ``nn.Sequential`` of nn.Linear, nn.Conv2d, proximal
    activations, nn.Flatten and nn.Unflatten that ends with an affine layer; it works on the network's own parameters.

    With several processes, or auxiliary variables that live on from iteration to iteration, training data have to say
    which samples a batch holds: ``trainer.fit(model, morphlightning.data.indexed(loader))``. Our data modules do.

    Logged are ``train/loss`` of the network's own forward pass, and what the loop measures: ``train/objective``,
    ``train/objective_change``, ``train/gap/<layer>``, and of BADMM ``train/primal_residual``, ``train/dual_residual``.
    Evaluation logs ``loss``, and mean squared error, peak signal-to-noise ratio or accuracy.

    Args:
        network: The network. It is not part of the hyperparameters: give it again to ``load_from_checkpoint``.
        loss: ``"squared_error"`` (half the sum of squares of a sample), ``"cross_entropy"``, or an object such as
            ``morphlightning.bregman.BregmanLoss(activation)``; an object, too, has to be given again.
        optimizer: Component of kind optimizers.
        num_classes: Number of classes, for the accuracy; None where targets are no classes.
        data_range: Value of white less that of black, where outputs are images (channels, height, width): for the peak
            signal-to-noise ratio, and figures on the command line. None for no images.
        diagnostics: Components of kind diagnostics.
        regularizers: Components of kind regularizers; lifted loops refuse them.

    Raises:
        ConfigError: A loss that cannot be lifted, such as a mean over outputs.
        PluginError: A component that is unknown, broken or given wrong parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: str | OutputLoss | Callable[[Tensor, Tensor], Tensor] = "squared_error",
        optimizer: Spec = "lifted",
        num_classes: int | None = None,
        data_range: float | None = None,
        diagnostics: Sequence[Spec] = (),
        regularizers: Sequence[Spec] = (),
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"LiftedModule: network is {network!r}, expected an nn.Module; a checkpoint does not hold it, so pass "
                "it again: load_from_checkpoint(path, network=...)"
            )
        if num_classes is not None and num_classes < 2:
            raise ConfigError(f"LiftedModule: num_classes must be >= 2, got {num_classes}")
        if data_range is not None and not data_range > 0:
            raise ConfigError(f"LiftedModule: data_range must be > 0, got {data_range}")
        lifted = output_loss(loss)
        super().__init__(lifted, optimizer, regularizers, diagnostics)
        given = {
            "optimizer": optimizer,
            "diagnostics": diagnostics,
            "regularizers": regularizers,
            "num_classes": num_classes,
            "data_range": data_range,
        }
        given |= {"network": type(network).__qualname__, "loss": plain(loss)}
        self.declare(given, optimizer="optimizers", diagnostics="diagnostics", regularizers="regularizers")
        self.network = network
        if (shape := getattr(network, "in_shape", None)) is not None:
            self.example_input_array = torch.zeros(2, *shape)
        metrics = _metrics(lifted, num_classes, data_range)
        self.stage_metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        output: Tensor = self.network(x)
        return output

    def evaluate(self, batch: Any, stage: str) -> None:
        """Log the mean loss of a sample and the metrics."""
        inputs, target = batch[:2]
        output = self(inputs)
        loss = self.data_loss(output, target)
        self.log(f"{stage}/loss", loss, sync_dist=True, batch_size=len(inputs), prog_bar=True)
        metrics: MetricCollection = self.stage_metrics[stage]  # type: ignore[assignment]
        if not len(metrics):
            return
        metrics.update(output, target if isinstance(self.data_loss, CrossEntropy) else target.reshape(output.shape))
        self.log_dict(metrics, batch_size=len(inputs), prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The network's outputs."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        output: Tensor = self(inputs)
        return output


def _metrics(loss: OutputLoss, num_classes: int | None, data_range: float | None) -> MetricCollection:
    if isinstance(loss, CrossEntropy) and num_classes is not None:
        return MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})
    if not isinstance(loss, SquaredError):
        return MetricCollection({})
    metrics: dict[str, Any] = {"mse": MeanSquaredError()}
    if data_range is not None:
        metrics["psnr"] = PeakSignalNoiseRatio(data_range=data_range)
    return MetricCollection(metrics)
