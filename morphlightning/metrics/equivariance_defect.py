"""With which changes of images the layers of a network commute, and how far they are from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from morphlightning.errors import BrokenCertificateError, ConfigError, DtypeError, ShapeError
from morphlightning.guarantees.stability.claims import Change
from morphlightning.guarantees.stability.defects import AMOUNTS, MAXIMA, Defect, Network, check_change, defects


class EquivarianceDefect(Metric):
    r"""Defects :math:`f(Tx) - T f(x)` of a network and of each of its layers, for one change T.

    ==============  =============================================================================================
    ``shift``       T moves images by ``amount`` pixels (1), along all axes, circularly
    ``contrast``    T applies an increasing function to each value, :math:`\mathrm{sign}(x)\sqrt{|x|}`
    ``brightness``  T adds ``amount`` (0.25)
    ``gain``        T multiplies by ``amount`` (1.5)
    ``sup``         f(max(x, x')) against max(f(x), f(x')), x' the sample before x; ``inf``: the dual
    ==============  =============================================================================================

    A layer is measured by itself, on the inputs that it gets in the network, see
    :func:`morphlightning.guarantees.stability.defects`; ``network`` is the whole. T acts on outputs as on inputs, but a
    shift leaves outputs without axes of space as they are, which makes the defect one of invariance. For each it says

    - ``<layer>/max`` and ``<layer>/mean``: of the moduli of the defect, in the units of the layer's outputs;
    - ``<layer>/relative``: mean squared defect over the mean squared distance between the outputs of an image and of
      the one before it in its batch. 1 is as far as another image.

    **Claims.** Layers for which exact commutation is proved say so
    (:func:`morphlightning.guarantees.stability.equivariances`): with shifts and suprema, flat ones with contrast and
    gain, bit for bit; with brightness up to rounding. A claimed defect that is not zero raises an error: the layer does
    not compute what it says.

    The network is run in evaluation mode, whatever its mode is.

    Args:
        group: The change.
        amount: Its amount; None for the value in brackets.
        per_layer: Measure layers too, not the network alone. Their inputs are kept in memory for a batch.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: There is no such change or amount.

    Source: which operators commute with what is classical (Serra; Heijmans); the bitwise claims are derived in
    docs/guarantees.md.

    Example:
        >>> metric = EquivarianceDefect("brightness")
        >>> metric.update(network, images)  # doctest: +SKIP
        >>> metric.compute()  # doctest: +SKIP
        {'conv1/max': 0.41, ..., 'network/max': 3.1, 'network/mean': 0.8, 'network/relative': 0.07}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    change: Tensor
    largest: Tensor
    total: Tensor
    numbers: Tensor
    squares: Tensor
    spread: Tensor
    excess: Tensor

    def __init__(self, group: Change, amount: float | None = None, per_layer: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.group, self.amount = check_change("EquivarianceDefect", group, amount)
        self.per_layer = per_layer
        self.layers: tuple[str, ...] = ()
        # which change this is, so that a MetricCollection never takes two metrics of equal values for one
        place = torch.tensor([list(AMOUNTS).index(self.group), self.amount], dtype=torch.float64)
        self.add_state("change", place, dist_reduce_fx="mean")
        for state in Defect._fields:  # a number for each layer, which are as many as the first batch says
            least, how = (-torch.inf, "max") if state in MAXIMA else (0.0, "sum")
            self.add_state(state, torch.tensor(least, dtype=torch.float64), dist_reduce_fx=how)

    def update(self, network: Network, images: Tensor) -> None:
        """Add a batch.

        Args:
            network: A module, or any function, whose layers are not seen.
            images: (batch, ...), floating-point; for shifts (batch, channels, *space) with two axes of space or more.

        Raises:
            ShapeError: These are no images, or one alone where a supremum of two is asked for.
            DtypeError: Images that are not floating-point.
            ConfigError: The network has other layers than in earlier batches.
        """
        self._check(images)
        found = defects(network, images, self.group, self.amount, self.per_layer)
        layers = tuple(found)
        if self.layers and layers != self.layers:
            raise ConfigError(
                "EquivarianceDefect: the network calls other layers than in earlier batches; use a metric for each "
                "network"
            )
        self.layers = layers
        here = {name: torch.stack([getattr(d, name).double() for d in found.values()]) for name in Defect._fields}
        for name, values in here.items():
            before = getattr(self, name)
            setattr(self, name, torch.maximum(before, values) if name in MAXIMA else before + values)

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point():
            raise DtypeError(f"EquivarianceDefect: images have dtype {images.dtype}, expected a floating-point one")
        least, pair = (4, 1) if self.group == "shift" else (1, 2 if self.group in ("sup", "inf") else 1)
        if images.ndim < least or 0 in images.shape or len(images) < pair:
            raise ShapeError(
                f"EquivarianceDefect: images have shape {tuple(images.shape)}; for {self.group!r} expected {least} "
                f"axes or more, and a batch of {pair} or more"
            )

    def reset(self) -> None:
        """Forget all batches, and the layers."""
        super().reset()
        self.layers = ()

    def compute(self) -> dict[str, Tensor]:
        """``<layer>/max``, ``<layer>/mean`` and ``<layer>/relative``, in the order of the layers; scalars.

        Raises:
            BrokenCertificateError: A layer that claims to commute does not; the message names it.
        """
        broken = [
            f"{layer} by {float(largest):.3g}"
            for layer, largest, excess in zip(self.layers, self.largest, self.excess, strict=True)
            if excess > 0
        ]
        if broken:
            raise BrokenCertificateError(
                f"EquivarianceDefect: layers that claim to commute with {self.group} do not: {', '.join(broken)}; what "
                "they compute is not what they say"
            )
        mean, relative = self.total / self.numbers, self.squares / self.spread
        found: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            values = {"max": self.largest[i], "mean": mean[i], "relative": relative[i]}
            found |= {f"{layer}/{name}": value for name, value in values.items()}
        return found
