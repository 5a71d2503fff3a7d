"""Denoising with a learned ridge regularizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from morphlightning import registry
from morphlightning.errors import ConfigError, DataError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.interfaces import Spec
from morphlightning.inverse import Solution
from morphlightning.models import losses
from morphlightning.models.training import COMPONENTS, PluginTraining
from morphlightning.ridge import FilterBank, NoiseScaling, Ridge, RidgeRegularizer, equilibrium, gradient_steps, solve
from morphlightning.ridge.filters import Padding, block_side

Training = Literal["equilibrium", "steps"]
COMPONENT_NAMES = ("activation", "optimizer", "regularizers", "diagnostics")
KNOTS = (0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.03, 0.05, 0.07, 0.1, 0.12)
"""Positive knots of the default splines: multiples of one width, which makes evaluation fast."""
RISE, PEAK, LEVEL, START_SCALE = 15.0, 0.006, 0.07, 4.3
"""The profile that splines start from: its slope up to the peak, where it ends to fall; and the scale's logarithm."""
RANGE_SLACK = 8.0
"""Pixels of a noisy image lie in [-8 sigma, 1 + 8 sigma]; others are taken for images in other units."""


class RidgeRegularizerDenoiser(PluginTraining):
    r"""Denoises by :math:`\arg\min_x \tfrac12\|x - y\|^2 + R(x)` with a ridge regularizer R, whose weights are learned.

    R sums learned potentials of filtered images, see :class:`morphlightning.ridge.RidgeRegularizer`. With
    ``weak_convexity=0`` it is convex (CRR); up to 1 it is weakly convex, and the objective is still convex (WCRR):
    the splines' slopes prove it. Accelerated gradient steps of known length find a minimizer.

    Features are those of windows inside the image. So that its border is treated as its middle, the image is continued
    by reflection before and cut out after; in training losses leave out a border of half a window instead.

    Batches are (noisy, clean) or (noisy, clean, sigma) with images (N, channels, H, W), white is 1, and noise levels
    (N,); without levels ``noise`` has to be one number. Training goes through the minimizer by implicit
    differentiation, or unrolls a few gradient steps. Evaluation logs PSNR and SSIM of outputs clipped to [0, 1].

    Args:
        channels: Channels of the image and of the layers of filters; the last is the number of features.
        kernel_size: Side of the kernels of each layer.
        zero_mean: Layers whose kernels have zero mean, ``"first"`` or ``"all"``.
        padding: ``"valid"``; or ``"full"`` or ``"same"``, which see zeros around the image, see
            :class:`morphlightning.ridge.FilterBank`. Images are continued by reflection with ``"valid"`` alone.
        weak_convexity: The rho in [0, 1] that the splines' slopes may fall to, -rho.
        activation: Component of kind activations that has splines: the derivatives of the potentials. None for
            :func:`default_activation`.
        shared: One spline for all features instead of one each.
        noise: The noise level of training, or the lowest and highest; white is 1.
        scaled: Whether the splines' scale follows the noise level, feature by feature.
        training: ``"equilibrium"`` (implicit differentiation) or ``"steps"`` (unrolled).
        steps: Gradient steps of unrolled training.
        train_tolerance: Stopping rule of the minimizer in training.
        train_iterations: Most iterations of the minimizer in training.
        adjoint_tolerance: Relative residual of the linear systems of implicit differentiation.
        tolerance: Stopping rule of the minimizer elsewhere.
        max_iterations: Most iterations of the minimizer elsewhere.
        optimizer: Component of kind optimizers, but no loop.
        regularizers: Components of kind regularizers, such as ``tv2``.
        diagnostics: Components of kind diagnostics.
        loss: As of the autoencoder.

    Raises:
        ConfigError: Settings that do not fit together.
        PluginError: A component that is unknown, broken or given wrong parameters.

    Source: Goujon et al., arXiv 2211.12461 (convex, unrolled steps), 2308.10542 (weakly convex, equilibrium, scales).
    """

    def __init__(
        self,
        channels: Sequence[int] = (1, 48),
        kernel_size: int = 7,
        zero_mean: Literal["first", "all"] = "first",
        padding: Padding = "valid",
        weak_convexity: float = 1.0,
        activation: Spec | None = None,
        shared: bool = True,
        noise: float | tuple[float, float] = 25 / 255,
        scaled: bool = True,
        training: Training = "equilibrium",
        steps: int = 10,
        train_tolerance: float = 1e-3,
        train_iterations: int = 100,
        adjoint_tolerance: float = 0.05,
        tolerance: float = 1e-4,
        max_iterations: int = 500,
        optimizer: Spec = "adam",
        regularizers: Sequence[Spec] = (),
        diagnostics: Sequence[Spec] = (),
        loss: str | losses.Loss = "mse_loss",
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check(weak_convexity, training, steps, noise, scaled)
        given |= {"channels": list(channels), "loss": losses.plain(loss)}
        given["noise"] = noise if isinstance(noise, int | float) else list(noise)
        super().__init__(losses.resolve(loss, losses.REGRESSION), optimizer, regularizers, diagnostics)
        if not self.automatic_optimization:
            raise ConfigError(
                f"RidgeRegularizerDenoiser: optimizer {optimizer!r} is a loop; take a torch optimizer, such as 'adam'"
            )
        self.declare(given, **{name: COMPONENTS[name] for name in COMPONENT_NAMES if given[name] is not None})
        features = channels[-1]
        spec = default_activation(weak_convexity) if activation is None else activation
        splines = registry.build("activations", spec, channels=None if shared else features, channel_dim=1)
        if activation is None:
            splines.fit_(lambda t: starting_profile(t, weak_convexity))
        self.regularizer = RidgeRegularizer(
            FilterBank(channels, kernel_size, zero_mean, padding),
            splines,
            NoiseScaling(features, noise, init=START_SCALE) if scaled else None,
        )
        metrics = MetricCollection(
            {
                "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
                "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
            }
        )
        self.stage_metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})

    # ------------------------------------------------------------------------------------------------ the objective
    def grad(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The gradient of R, shape of x; ``sigma`` as for calling."""
        return self.regularizer.grad(x, self._levels(sigma))

    def gradient_at(self, sigma: Tensor | float | None = None) -> Callable[[Tensor], Tensor]:
        """The gradient of R at the present weights and one noise level, without history: for many evaluations."""
        return self.regularizer.gradient_at(self._levels(sigma))

    def energy(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """R of each image, (N,); ``sigma`` as for calling."""
        return self.regularizer.energy(x, self._levels(sigma))

    def lipschitz(self) -> float:
        """A Lipschitz constant of the gradient of R."""
        return self.regularizer.lipschitz()

    def weak_convexity(self) -> float:
        """The rho for which R + rho/2 ||.||^2 is convex."""
        return self.regularizer.weak_convexity()

    def convexity_modulus(self) -> float:
        """The m for which the denoising objective is m-strongly convex, 1 - rho; certified unless a norm was given."""
        return 1 - self.regularizer.weak_convexity()

    # --------------------------------------------------------------------------------------------------- denoising
    def forward(self, y: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Denoised images, shape of y.

        In training mode they are differentiable in the weights; else no history is kept.

        Args:
            y: Noisy images (N, channels, H, W), white is 1; any size.
            sigma: Noise level of all images, or (N,); None for the level of training, where that is one number.

        Raises:
            ShapeError: y has another shape.
            DtypeError: y is not floating-point.
            DataError: The images are not in [0, 1] up to noise, such as bytes.
            ConfigError: No noise level where one is needed.
        """
        level = self._levels(sigma)
        if not self.training:
            return self.denoise(y, level).x
        self._check_images(y, level)
        with torch.autocast(y.device.type, enabled=False):  # a minimizer in half precision is none
            return self._differentiable(y, level)

    def _differentiable(self, y: Tensor, level: Tensor | float | None) -> Tensor:
        """The denoised images as functions of the weights."""
        ridge: Ridge = self.regularizer(level)
        settings = self.hparams
        if settings["training"] == "steps":
            return gradient_steps(ridge, y, settings["steps"])
        return equilibrium(
            ridge,
            y,
            tolerance=settings["train_tolerance"],
            max_iterations=settings["train_iterations"],
            adjoint_tolerance=settings["adjoint_tolerance"],
        )

    @torch.no_grad()
    def denoise(
        self,
        y: Tensor,
        sigma: Tensor | float | None = None,
        tolerance: float | None = None,
        max_iterations: int | None = None,
    ) -> Solution:
        """The minimizers with their iterations and residuals; arguments and errors as for calling.

        Args:
            y: Noisy images.
            sigma: Noise level.
            tolerance: Stopping rule: the relative change of an iteration; None for the model's.
            max_iterations: Most iterations; None for the model's.
        """
        level = self._levels(sigma)
        self._check_images(y, level)
        continued, window = self._continued(y)
        with torch.autocast(y.device.type, enabled=False):
            solution = solve(
                self.regularizer(level),
                continued,
                tolerance=self.hparams["tolerance"] if tolerance is None else tolerance,
                max_iterations=self.hparams["max_iterations"] if max_iterations is None else max_iterations,
            )
        return dataclasses.replace(solution, x=solution.x[window])

    def _continued(self, y: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Images continued by reflection, to whole blocks of pixels, and where they lie in there."""
        height, width = y.shape[2:]
        margin = self._extent - 1 if self.hparams["padding"] == "valid" else 0
        block = block_side(self._extent)
        more = [(-side) % block for side in (height, width)] if margin else [0, 0]
        continued = F.pad(y, (margin, margin + more[1], margin, margin + more[0]), mode="reflect") if margin else y
        return continued, (..., slice(margin, margin + height), slice(margin, margin + width))

    @property
    def _extent(self) -> int:
        return self.regularizer.filters.extent

    @property
    def _smallest(self) -> int:
        """Images must have more pixels a side, to be continued by reflection and hold a window."""
        return self._extent - 1 + block_side(self._extent) if self.hparams["padding"] == "valid" else 0

    @property
    def knows_the_level(self) -> bool:
        """Whether images can be denoised without saying how noisy they are."""
        return self.regularizer.scaling is None or isinstance(self.hparams["noise"], int | float)

    def _levels(self, sigma: Tensor | float | None) -> Tensor | float | None:
        if sigma is not None or self.regularizer.scaling is None:
            return sigma
        noise = self.hparams["noise"]
        if not self.knows_the_level:
            raise ConfigError(
                f"RidgeRegularizerDenoiser: trained for noise levels in {noise}; say which one these images have: sigma"
            )
        return float(noise)

    def _check_images(self, y: Tensor, sigma: Tensor | float | None) -> None:
        where, channels = type(self).__name__, self.hparams["channels"][0]
        check_real(where, y=y)
        if y.ndim != 4 or y.shape[1] != channels:
            raise ShapeError(f"{where}: y has shape {tuple(y.shape)}, expected (batch, {channels}, height, width)")
        if min(y.shape[2:]) <= self._smallest:
            raise ShapeError(
                f"{where}: images of {tuple(y.shape[2:])} pixels, expected more than {self._smallest} a side"
            )
        if isinstance(sigma, Tensor) and sigma.numel() not in (1, len(y)):
            raise ShapeError(
                f"{where}: {sigma.numel()} noise levels for {len(y)} images; give one each, or one for all"
            )
        if self.training or not y.numel():
            return
        noise = self.hparams["noise"] if sigma is None else sigma
        level = max(float(torch.as_tensor(noise).max()), 1 / 255)
        low, high = (float(v) for v in y.aminmax())
        if low < -RANGE_SLACK * level or high > 1 + RANGE_SLACK * level:
            raise DataError(
                f"{where}: images reach from {low:.4g} to {high:.4g}, expected [0, 1] and noise of level {level:.3g}; "
                "divide bytes by 255, and give sigma in the same units"
            )

    # ---------------------------------------------------------------------------------------------------- training
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch (noisy, clean) or (noisy, clean, sigma)."""
        noisy, clean, sigma = _unpack(batch)
        border = (self._extent - 1) // 2 if self.hparams["padding"] == "valid" else 0
        output, clean = (
            part[..., border : part.shape[-2] - border, border : part.shape[-1] - border]
            for part in (self(noisy, sigma), clean)
        )
        return self.loss(output, clean, noisy)

    def evaluate(self, batch: Any, stage: str) -> None:
        """Log the loss, PSNR and SSIM (means over images), and iterations."""
        noisy, clean, sigma = _unpack(batch)
        solution = self.denoise(noisy, sigma)
        self.log(
            f"{stage}/loss",
            self.data_loss(solution.x, clean),
            sync_dist=True,
            batch_size=len(noisy),
            prog_bar=True,
        )
        self.log(f"{stage}/iterations", solution.iterations.float().mean(), sync_dist=True, batch_size=len(noisy))
        metrics: MetricCollection = self.stage_metrics[stage]  # type: ignore[assignment]
        metrics.update(solution.x.clamp(0, 1), clean)
        self.log_dict(metrics, batch_size=len(noisy))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Denoised images, clipped to [0, 1]."""
        if not isinstance(batch, list | tuple):
            return self.denoise(batch).x.clamp(0, 1)
        noisy, _, sigma = _unpack(batch)
        return self.denoise(noisy, sigma).x.clamp(0, 1)


def default_activation(weak_convexity: float) -> dict[str, Any]:
    r"""Odd splines, level at the ends, with slopes from :math:`-\rho`, whose knots are dense where potentials bend."""
    knots = [*(-knot for knot in reversed(KNOTS)), 0.0, *KNOTS]
    return {
        "name": "nonuniform_spline",
        "knots": knots,
        "init": "zero",
        "constraint": {"min": -weak_convexity, "odd": True, "level_ends": True},
        "projection": "step",
        "metric": "l2",  # clipping slopes that noise pushes below their bound lifts the tails, step by step
    }


def starting_profile(t: Tensor, weak_convexity: float) -> Tensor:
    r"""A steep rise, then a fall of slope :math:`-\rho`: the derivative of a minimax concave penalty.

    Source: Zhang 2010 (the penalty); what learned profiles look like, Goujon et al., arXiv 2308.10542.
    """
    return RISE * t.clamp(-PEAK, PEAK) - weak_convexity * t.clamp(-LEVEL, LEVEL)


def _unpack(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    noisy, clean, *rest = batch
    return noisy, clean, rest[0] if rest else None


def _check(weak_convexity: float, training: str, steps: int, noise: float | tuple[float, float], scaled: bool) -> None:
    where = "RidgeRegularizerDenoiser"
    if not 0 <= weak_convexity <= 1:
        raise ConfigError(f"{where}: weak_convexity={weak_convexity}, expected [0, 1]; above 1 denoising is not convex")
    if training not in ("equilibrium", "steps"):
        raise ConfigError(f"{where}: training={training!r}, expected 'equilibrium' or 'steps'")
    if steps < 1:
        raise ConfigError(f"{where}: steps={steps}, expected at least 1")
    if not scaled and not isinstance(noise, int | float):
        raise ConfigError(f"{where}: noise={noise} is a range, which takes scaled=True")
