"""Densities learned by likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from morphlightning.callbacks.random_state import capture, restore
from morphlightning.errors import ConfigError, DataError, ShapeError
from morphlightning.flows import (
    Bijection,
    Composition,
    Flow,
    Logit,
    MonotoneSpline,
    QuadraticSpline,
    coupling_flow,
    residual_flow,
)
from morphlightning.flows.base import Reduce
from morphlightning.flows.monotone import Kind
from morphlightning.flows.residual import LogDet
from morphlightning.functional.checks import check_real
from morphlightning.interfaces import Spec
from morphlightning.models.backbones import check_sizes
from morphlightning.models.training import COMPONENTS, PluginTraining


class NormalizingFlow(PluginTraining):
    r"""A normalizing flow trained by maximum likelihood, on points or on images.

    The default is a flow of couplings with quadratic monotone splines. Batches are x, or a list that begins with x:
    points or images (batch, *in_shape). ``forward`` gives log-densities (batch,).

    With ``levels`` x are images of so many grey levels in [0, 1]. They are **dequantized**: with u uniform on [0, 1)
    the density of :math:`y = (k + u)/levels` is learned, k = 0, 1, ... the level, and
    :math:`-\log_2 p(y)/dim + \log_2 levels` bits per dimension bound what the discrete images cost from above (Theis
    et al., arXiv 1511.01844). Splines act behind :class:`~morphlightning.flows.Logit`. Evaluation draws the same u
    each time.

    Normalizations get their start when ``fit`` begins, from the first ``start_samples`` training samples of all
    processes together; a resumed or loaded model keeps its own.

    Args:
        in_shape: Shape of one sample.
        kind: ``"coupling"`` for couplings with monotone splines, ``"residual"`` for steps x + c g(x) with a network g
            that is 1-Lipschitz for certain.
        layers: Number of couplings, or of residual steps.
        hidden: Widths of the hidden layers of the networks that steer couplings, or of g.
        spline: ``"quadratic"``, ``"linear"`` or ``"affine"``, see :class:`~morphlightning.flows.MonotoneSpline`.
        bins: Pieces of a spline.
        bound: Splines have their knots on [-bound, bound].
        slopes: The least and the greatest slope of a spline.
        contraction: c, in (0, 1), see :class:`~morphlightning.flows.InvertibleResidual`.
        log_det: How log-determinants of residual steps are computed in training, see there.
        levels: Number of grey levels of images, such as 256 (17 for ``data.Digits``); None for points.
        bijection: A bijection of your own in place of all that; its dim is the product of ``in_shape``. It is not part
            of the hyperparameters; give it again to ``load_from_checkpoint``.
        activation: Component of kind activations, of the networks; None for ReLU in couplings and quadratic
            splines in g, see :class:`~morphlightning.flows.QuadraticSpline`.
        optimizer: Component of kind optimizers.
        regularizers: Components of kind regularizers.
        diagnostics: Components of kind diagnostics.

    Attributes:
        start_samples: See above.

    Raises:
        ConfigError: Settings that do not fit together.
        PluginError: A component that is unknown, broken or given wrong parameters.
    """

    start_samples: int = 1024

    def __init__(
        self,
        in_shape: Sequence[int] = (2,),
        kind: Literal["coupling", "residual"] = "coupling",
        layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        spline: Kind = "quadratic",
        bins: int = 16,
        bound: float = 3.0,
        slopes: tuple[float, float] = (0.05, 20.0),
        contraction: float = 0.9,
        log_det: LogDet = "exact",
        levels: int | None = None,
        bijection: Bijection | None = None,
        activation: Spec | None = None,
        optimizer: Spec = "adam",
        regularizers: Sequence[Spec] = (),
        diagnostics: Sequence[Spec] = (),
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        where = type(self).__name__
        if isinstance(bijection, str):  # what a checkpoint holds in its place
            raise ConfigError(
                f"{where}: this model has a bijection of its own ({bijection}), which hyperparameters do not hold; "
                "pass it again: load_from_checkpoint(path, bijection=...)"
            )
        check_sizes(where, in_shape=in_shape, hidden=hidden, layers=layers)
        if kind not in ("coupling", "residual"):
            raise ConfigError(f"{where}: kind={kind!r}, expected 'coupling' or 'residual'")
        if not in_shape:
            raise ConfigError(f"{where}: in_shape=(), expected the shape of one sample")
        if levels is not None and levels < 2:
            raise ConfigError(f"{where}: levels={levels}, expected at least 2, or None for points")
        given |= {"in_shape": list(in_shape), "hidden": list(hidden), "slopes": list(slopes)}
        given |= {"bijection": bijection and type(bijection).__qualname__}
        super().__init__(negative_mean, optimizer, regularizers, diagnostics)
        kinds = {name: COMPONENTS[name] for name in COMPONENTS if given.get(name) is not None}
        self.declare(given, **kinds)
        self.in_shape, self.levels = tuple(in_shape), levels
        dim = math.prod(in_shape)
        if bijection is None:
            if kind == "residual":
                bijection = residual_flow(dim, layers, hidden, contraction, log_det, activation or QuadraticSpline)
            else:
                splines = MonotoneSpline(spline, bins, bound, slopes)
                bijection = coupling_flow(dim, layers, hidden, splines, activation or "relu")
        if bijection.dim != dim:
            raise ConfigError(f"{where}: the bijection has dim {bijection.dim}, in_shape={self.in_shape} has {dim}")
        self.flow = Flow(Composition(Logit(dim), bijection) if levels else bijection)
        self.example_input_array = torch.zeros(2, *self.in_shape)

    # ---------------------------------------------------------------------------------------------------- densities
    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the density at x (batch, *in_shape), shape (batch,); of images, at dequantized ones in [0, 1].

        Raises:
            ShapeError: x has another shape.
            DtypeError: x is not floating-point.
        """
        log_prob: Tensor = self.flow(self._flat(x))
        return log_prob

    def transform(self, x: Tensor) -> Tensor:
        """The images z (batch, dim) of x (batch, *in_shape), Gaussian where the density is right."""
        return self.flow.transform(self._flat(x))

    def inverse(self, z: Tensor) -> Tensor:
        """The x (batch, *in_shape) of images z (batch, dim)."""
        x: Tensor = self.flow.inverse(z).unflatten(1, self.in_shape)
        return x

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples (n, *in_shape); of images, of their grey levels in [0, 1]."""
        x = self.flow.sample(n, generator).unflatten(1, self.in_shape)
        return x if self.levels is None else self.quantize(x)

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """What images cost whose dequantized ones have these log-densities, in bits per dimension.

        Raises:
            ConfigError: The model is one of points.
        """
        return math.log2(self._levels()) - log_prob / (self.flow.dim * math.log(2))

    def dequantize(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images x in [0, 1] with uniform noise below their grey level, in [0, 1].

        Without a generator each process takes its share of the noise that one process alone would draw.

        Raises:
            ConfigError: The model is one of points.
            DataError: x holds other values than ``levels`` equally spaced ones on [0, 1].
        """
        levels = self._levels()
        steps = x * (levels - 1)
        level = steps.round()
        if not ((steps - level).abs().max() < 0.01 and level.min() >= 0 and level.max() < levels):
            raise DataError(
                f"{type(self).__name__}: images hold values in [{float(x.min()):.4g}, {float(x.max()):.4g}], expected "
                f"the {levels} levels 0, 1/{levels - 1}, ..., 1; set levels to that of your data, and give images "
                'without noise (task="reconstruction")'
            )
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self._trainer and not generator else (1, 0)
        noise = torch.rand((len(x) * ranks, *x.shape[1:]), generator=generator, dtype=x.dtype)[rank::ranks]
        return (level + noise.to(x.device)) / levels

    def quantize(self, y: Tensor) -> Tensor:
        """The images of grey levels in [0, 1] whose dequantized ones are y."""
        levels = self._levels()
        return (y * levels).floor().clamp(0, levels - 1) / (levels - 1)

    def _levels(self) -> int:
        if self.levels is None:
            raise ConfigError(f"{type(self).__name__}: levels=None says that samples are points, not images of levels")
        return self.levels

    def _flat(self, x: Tensor) -> Tensor:
        check_real(type(self).__name__, x=x)
        if tuple(x.shape[1:]) != self.in_shape:
            raise ShapeError(
                f"{type(self).__name__}: samples have shape {tuple(x.shape[1:])} after the batch axis, the model was "
                f"built for in_shape={self.in_shape}; pass in_shape of your data"
            )
        return x.flatten(1)

    # ----------------------------------------------------------------------------------------------------- training
    def on_fit_start(self) -> None:
        """Start normalizations from the training data; modules are restored by now, so not on resume."""
        super().on_fit_start()
        if self.flow.bijection.awaits_data:
            loader = self.trainer.fit_loop._data_source.dataloader()  # one of its own: training's is not touched
            self.start(loader, lambda mean: self.trainer.strategy.reduce(mean, reduce_op="mean"))

    def start(self, loader: Iterable[Any], reduce: Reduce = lambda mean: mean) -> None:
        """Start normalizations from the first batches of a loader; ``fit`` does it where it is still to be done.

        Those that were started, trained or loaded before stay as they are, and so do random states.

        Args:
            loader: Of batches as for training.
            reduce: Makes means over all processes of means over this one's samples.
        """
        state = capture(self.device)
        try:
            batches = iter(loader)
            x = self._prepared(next(batches))
            share = self.start_samples / (self.trainer.world_size if self._trainer else 1)
            more = islice(batches, max(0, math.ceil(share / len(x)) - 1))
            x = torch.cat([x, *(self._prepared(batch) for batch in more)])
            self.flow.bijection.initialize(self._flat(x.to(next(self.parameters()))), reduce)
        finally:
            restore(state, self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One step on the negative log-likelihood and regularizers."""
        x = self._prepared(batch)
        return super().training_step([x, x], batch_idx)

    def _prepared(self, batch: Any, generator: torch.Generator | None = None) -> Tensor:
        x = samples_of(batch)
        return x if self.levels is None else self.dequantize(x, generator)

    def evaluate(self, batch: Any, stage: str) -> None:
        """Log the negative log-likelihood (as ``nll`` and ``loss``) and, of images, bits per dimension."""
        x = self._prepared(batch, torch.Generator().manual_seed(0))
        log_prob = self(x)
        nll = negative_mean(log_prob, x)
        values = {f"{stage}/loss": nll, f"{stage}/nll": nll}
        if self.levels is not None:
            values[f"{stage}/bits_per_dim"] = self.bits_per_dim(log_prob).mean()
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(x))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Log-densities (batch,), of images at dequantized ones."""
        log_prob: Tensor = self(self._prepared(batch, torch.Generator().manual_seed(0)))
        return log_prob


def negative_mean(log_prob: Tensor, target: Tensor) -> Tensor:
    """The mean negative log-likelihood, in nats."""
    return -log_prob.mean()


def samples_of(batch: Any) -> Tensor:
    """The samples of a batch x or (x, ...)."""
    x: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return x
