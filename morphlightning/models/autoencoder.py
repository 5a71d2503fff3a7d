"""Image restoration and part-based codes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.interfaces import Spec
from morphlightning.layers import DilationErosion, MorphPool2d
from morphlightning.metrics import DilationCommutation
from morphlightning.models import losses
from morphlightning.models.backbones import activation_layer, check_in_shape, check_sizes
from morphlightning.models.training import COMPONENTS, PluginTraining


class MorphologicalAutoencoder(PluginTraining):
    """Autoencoder with morphological layers, for denoising, inpainting or plain reconstruction.

    Batches are (inputs, targets) of the same shape (batch, *in_shape), values in [0, 1]; the task is the data
    module's. Convolutional by default: each stage of the encoder is a convolution, the activation and morphological
    pooling, each stage of the decoder upsampling and a convolution; skips join stages of equal size. ``channels=()``
    gives the dense one: dilations and erosions of the pixels, a code, and a linear decoder.

    ``parts=True`` makes the dense autoencoder part-based: code and decoder weights are non-negative, so that an image
    is a sum of atoms, and ``val/dilation_commutation`` measures how well the dilation of an image is the sum of its
    dilated atoms. Use the regularizer ``l1`` for sparser atoms and ``code_sparsity`` for sparser codes.

    Args:
        in_shape: Shape of one image, (channels, height, width).
        channels: Widths of the convolutional stages.
        hidden: Dilations, and erosions, of the dense encoder.
        code: Size of the dense code.
        parts: Non-negative code and atoms (dense only).
        code_sparsity: Weight of the mean absolute value of the code in the training loss (dense only).
        activation: Component of kind activations.
        derivative: Component of kind derivatives, for all morphological layers.
        heuristic: Component of kind heuristics or a composition of them.
        initializer: Component of kind initializers, for all morphological layers.
        optimizer: Component of kind optimizers.
        regularizers: Components of kind regularizers.
        diagnostics: Components of kind diagnostics.
        loss: ``"mse_loss"``, ``"l1_loss"``, ``"smooth_l1_loss"``, ``"huber_loss"``, or a callable (output, target) to
            a mean over the batch; a callable has to be given again to ``load_from_checkpoint``.

    Raises:
        ConfigError: Settings that do not fit together.
        PluginError: A component that is unknown, broken or given wrong parameters.

    Source: part-based codes and their commutation with dilation, Ponchon et al., arXiv 1904.00763.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (1, 28, 28),
        channels: Sequence[int] = (16, 32),
        hidden: int = 100,
        code: int = 64,
        parts: bool = False,
        code_sparsity: float = 0.0,
        activation: Spec = "relu",
        derivative: Spec = "first",
        heuristic: Spec = "plain",
        initializer: Spec = "upper",
        optimizer: Spec = "adam",
        regularizers: Sequence[Spec] = (),
        diagnostics: Sequence[Spec] = (),
        loss: str | losses.Loss = "mse_loss",
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        where = type(self).__name__
        check_in_shape(where, in_shape)
        check_sizes(where, channels=channels, hidden=hidden, code=code)
        if min(in_shape[1:]) < 3:
            raise ConfigError(f"{where}: in_shape={tuple(in_shape)}, expected images of at least 3x3 pixels")
        if channels and (parts or code_sparsity):
            raise ConfigError(f"{where}: parts and code_sparsity belong to the dense one; set channels=()")
        if code_sparsity < 0:
            raise ConfigError(f"{where}: code_sparsity must be >= 0, got {code_sparsity}")
        given |= {"in_shape": list(in_shape), "channels": list(channels), "loss": losses.plain(loss)}
        super().__init__(losses.resolve(loss, losses.REGRESSION), optimizer, regularizers, diagnostics)
        self.declare(given, **COMPONENTS)
        self.in_shape = tuple(in_shape)
        self.code_sparsity = code_sparsity
        self._code: Tensor | None = None
        rules = {"derivative": derivative, "heuristic": heuristic, "initializer": initializer}
        self.network: ConvolutionalAutoencoder | DenseAutoencoder
        if channels:
            self.network = ConvolutionalAutoencoder(self.in_shape[0], channels, activation, rules)
        else:
            self.network = DenseAutoencoder(self.in_shape, hidden, code, parts, activation, rules)
        metrics = MetricCollection(
            {
                "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
                "ssim": StructuralSimilarityIndexMeasure(data_range=1.0, sigma=_ssim_sigma(min(in_shape[1:]))),
                "mse": MeanSquaredError(),
            }
        )
        self.stage_metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})
        self.commutation = nn.ModuleDict({stage: DilationCommutation() for stage in ("val", "test")} if parts else {})
        self.example_input_array = torch.zeros(2, *self.in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction, shape of x (batch, *in_shape); with convolutional stages any height and width will do.

        Raises:
            ShapeError: x has another shape.
            DtypeError: x is not floating-point.
        """
        check_real(type(self).__name__, x=x)
        fits = x.shape[2:] == self.in_shape[1:] or isinstance(self.network, ConvolutionalAutoencoder)
        if x.ndim != 4 or x.shape[1] != self.in_shape[0] or not fits:
            raise ShapeError(
                f"MorphologicalAutoencoder: x has shape {tuple(x.shape)}, expected (batch, {self.in_shape[0]}, height, "
                f"width); the model was built for in_shape={self.in_shape}"
            )
        if self.training and self.code_sparsity and isinstance(self.network, DenseAutoencoder):
            self._code = self.network.encode(x)
            return self.network.decode(self._code)
        y: Tensor = self.network(x)
        return y

    def loss(self, output: Tensor, target: Tensor, inputs: Tensor, prefix: str = "train") -> Tensor:
        """As the base, with the sparsity of the code."""
        total = super().loss(output, target, inputs, prefix)
        code, self._code = self._code, None
        if code is None:
            return total
        term = self.code_sparsity * code.abs().mean()
        self.log_mean("regularizer/code_sparsity", term, inputs)
        return total + term

    def evaluate(self, batch: Any, stage: str) -> None:
        """Log the loss, PSNR, SSIM, mean squared error and, with parts, the commutation with dilation.

        The metrics see outputs clipped to [0, 1]; PSNR and SSIM are means over the images. SSIM is that of Wang et al.:
        a Gaussian window with sigma 1.5, a narrower one where an image has less than 11 pixels a side.
        """
        inputs, target = batch[:2]
        output = self(inputs)
        self.log(f"{stage}/loss", self.data_loss(output, target), sync_dist=True, batch_size=len(inputs), prog_bar=True)
        metrics: MetricCollection = self.stage_metrics[stage]  # type: ignore[assignment]
        metrics.update(output.clamp(0, 1), target)
        self.log_dict(metrics, batch_size=len(inputs))
        if stage in self.commutation and isinstance(self.network, DenseAutoencoder):
            metric: DilationCommutation = self.commutation[stage]  # type: ignore[assignment]
            metric.update(self.network.encode(inputs), self.network.atoms, target)
            self.log(f"{stage}/dilation_commutation", metric, batch_size=len(inputs))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Reconstructions, clipped to [0, 1]."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        output: Tensor = self(inputs).clamp(0, 1)
        return output


class ConvolutionalAutoencoder(nn.Module):
    """Encoder of convolutions and morphological pooling, decoder of upsampling and convolutions, with skips."""

    def __init__(self, in_channels: int, channels: Sequence[int], activation: Spec, rules: dict[str, Spec]) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), activation_layer(activation, b, 1))
            for a, b in pairwise(widths)
        )
        self.pools = nn.ModuleList(MorphPool2d(b, 3, 2, 1, **rules) for b in channels)
        self.bottom = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 3, padding=1), activation_layer(activation, widths[-1], 1)
        )
        narrower = [channels[0], *channels[:-1]]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * b, a, 3, padding=1), activation_layer(activation, a, 1))
            for a, b in reversed(list(zip(narrower, channels, strict=True)))
        )
        self.output = nn.Conv2d(widths[1], in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        skips = []
        for stage, pool in zip(self.encoder, self.pools, strict=True):
            x = stage(x)
            skips.append(x)
            x = pool(x)
        x = self.bottom(x)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = stage(torch.cat([x, skip], 1))
        y: Tensor = self.output(x)
        return y


class DenseAutoencoder(nn.Module):
    """Dilations and erosions of the pixels, a linear code, a linear decoder."""

    def __init__(
        self, in_shape: tuple[int, ...], hidden: int, code: int, parts: bool, activation: Spec, rules: dict[str, Spec]
    ) -> None:
        super().__init__()
        self.in_shape, pixels = in_shape, math.prod(in_shape)
        self.encoder = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                morph=DilationErosion(pixels, hidden, **rules),
                linear=nn.Linear(2 * hidden, code),
                activation=nn.ReLU() if parts else activation_layer(activation, code, -1),
            )
        )
        self.decoder: nn.Linear = NonNegativeLinear(code, pixels) if parts else nn.Linear(code, pixels)

    def encode(self, x: Tensor) -> Tensor:
        """Code (batch, code)."""
        code: Tensor = self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Images (batch, *in_shape) of a code."""
        y: Tensor = self.decoder(code).unflatten(1, self.in_shape)
        return y

    @property
    def atoms(self) -> Tensor:
        """What each element of the code draws, (code, *in_shape)."""
        atoms: Tensor = self.decoder.weight.t().unflatten(1, self.in_shape)
        return atoms

    def forward(self, x: Tensor) -> Tensor:
        """Shape of x."""
        return self.decode(self.encode(x))


class NonNegativeLinear(nn.Linear):
    """A linear map without bias whose weights are kept non-negative after each optimizer step."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.project_()

    @torch.no_grad()
    def project_(self) -> None:
        """Set negative weights to 0."""
        self.weight.clamp_(min=0)


def _ssim_sigma(side: int) -> float:
    """1.5 (Wang et al., a window of 11 pixels), or less where an image is too small for that window."""
    radius = (side - 1) // 2
    return min(1.5, radius / 3.5)  # torchmetrics cuts the Gaussian at 3.5 sigma
