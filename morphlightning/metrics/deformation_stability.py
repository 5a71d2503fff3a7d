"""How much a network makes of small deformations, beside what it makes of noise of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.guarantees.stability.defects import Network, check_images, evaluating
from morphlightning.guarantees.stability.fields import DisplacementField, Kind
from morphlightning.guarantees.stability.warp import deform


class DeformationStability(Metric):
    r"""Stability D to deformations, G to noise, their ratio R, and constants C, over a range of :math:`\kappa`.

    A network f sees images x, the same images deformed by random fields :math:`\tau` with :math:`\sup|\nabla\tau| =
    \kappa`, and x + z with Gaussian noise of the norm of the deformation, :math:`|z| = |L_\tau x - x|` for each image:

    .. math::

        D = \frac{E |f(L_\tau x) - f(x)|^2}{E |f(x) - f(x')|^2}, \quad
        G = \frac{E |f(x + z) - f(x)|^2}{E |f(x) - f(x')|^2}, \quad
        R = \frac{D}{G}, \quad
        C = \frac{|f(L_\tau x) - f(x)|}{\kappa\, |x|},

    where x' is another image of the set (all pairs count). D is 0 where f is invariant and 1 where a deformed image is
    as far as another image. R is 1 for every f that is a constant times an isometry, and below 1 where f is stabler to
    deformations than to noise. R says nothing by itself: where G is large it is small. So all three come together, and
    networks of different kinds are compared by D first. These are means over what was drawn, no certificates. C is a
    lower bound of the constant in :math:`|f(x) - f(L_\tau x)| \le C\,|x| \sup|\nabla\tau|`; its quantiles are over
    images, the quantile 1 is its largest value. Where a network answers all images alike, D, G and R are NaN.

    The network is run in evaluation mode, whatever its mode is. Fields and noise depend on ``seed`` and the images of
    the batch; torch's global random state is left alone.

    Args:
        gradients: Values of :math:`\kappa`, in (0, 1).
        kind: Of the fields, see :class:`morphlightning.guarantees.stability.DisplacementField`.
        quantiles: Of C, in [0, 1].
        seed: Of fields and noise.
        field: Further settings of the fields (``cut``, ``waves``, ``sigma``).
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: A gradient or a quantile out of its range.

    Source: D, G and R follow Petrini et al., arXiv 2105.02468 (abstract and code); C is the constant of the stability
    of arXiv 1712.04741, eq. 4.

    Example:
        >>> metric = DeformationStability(gradients=(0.1, 0.3))
        >>> for images, _ in loader:  # doctest: +SKIP
        ...     metric.update(network, images)
        >>> metric.compute()  # doctest: +SKIP
        {'D@0.1': 0.012, 'G@0.1': 0.006, 'R@0.1': 2.1, 'C50@0.1': 1.3, ..., 'C100@0.3': 4.5}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    deformed: Tensor
    noisy: Tensor
    total: Tensor
    squares: Tensor
    count: Tensor
    constants: list[Tensor] | Tensor

    def __init__(
        self,
        gradients: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
        kind: Kind = "max_entropy",
        quantiles: Sequence[float] = (0.5, 0.9, 1.0),
        seed: int = 0,
        field: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not gradients or not all(0 < gradient < 1 for gradient in gradients):
            raise ConfigError(
                f"DeformationStability: gradients={tuple(gradients)}, expected values of sup|grad tau| in (0, 1), for "
                "u - tau(u) may fold otherwise; lower them"
            )
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise ConfigError(f"DeformationStability: quantiles={tuple(quantiles)}, expected numbers in [0, 1]")
        self.gradients, self.quantiles, self.seed = tuple(gradients), tuple(quantiles), seed
        self.fields = [DisplacementField(kind, gradient=gradient, **(field or {})) for gradient in gradients]
        for state in ("deformed", "noisy"):
            self.add_state(state, torch.zeros(len(gradients), dtype=torch.float64), dist_reduce_fx="sum")
        for state in ("total", "squares"):  # of outputs, which are as many as the first batch says
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("constants", [], dist_reduce_fx="cat")

    def update(self, network: Network, images: Tensor) -> None:
        """Add a batch.

        Args:
            network: From images to outputs, (batch, ...).
            images: (batch, channels, height, width), floating-point.

        Raises:
            ShapeError: These are no images, or the network does not answer with one output for each.
            DtypeError: Images that are not floating-point.
            ConfigError: Images on which the fields are constant, such as single pixels.
        """
        check_images("DeformationStability", images)
        source = torch.Generator().manual_seed(hash((self.seed, _fingerprint(images))) % 2**63)
        with evaluating(network):
            outputs = _outputs(network, images)
            if self.count and outputs.shape[1:] != self.total.shape:
                raise ShapeError(
                    f"DeformationStability: {outputs.shape[1]} outputs for an image, those of earlier batches had "
                    f"{len(self.total)}; reset the metric before another network or image size"
                )
            found = [self._measure(network, images, outputs, field, source) for field in self.fields]
        deformed, noisy, norms = (torch.stack(parts) for parts in zip(*found, strict=True))
        self.deformed += deformed.square().sum(1)
        self.noisy += noisy.square().sum(1)
        self.total = self.total + outputs.sum(0)
        self.squares = self.squares + outputs.square().sum()
        self.count += len(images)
        self.constants.append((deformed / norms).T)  # type: ignore[union-attr]  # a list until it is reduced

    @staticmethod
    def _measure(
        network: Network, images: Tensor, outputs: Tensor, field: DisplacementField, source: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distances that deformations and noise make, and kappa |x|, each (batch,)."""
        size = (images.shape[2], images.shape[3])
        tau = field.draw(size, len(images), source, dtype=torch.float64, device=images.device)
        moved = deform(images, tau)
        noise = torch.randn(images.shape, generator=source, dtype=torch.float64).to(images.device)
        noise *= (_norms(moved - images) / _norms(noise)).view(-1, 1, 1, 1)
        deformed = _norms(_outputs(network, moved) - outputs)
        noisy = _norms(_outputs(network, images + noise.to(images.dtype)) - outputs)
        return deformed, noisy, tau.gradient * _norms(images)

    def compute(self) -> dict[str, Tensor]:
        """``D@<kappa>``, ``G@<kappa>``, ``R@<kappa>`` and ``C<percent>@<kappa>``; scalars, ready to be logged."""
        found: dict[str, Tensor] = {}
        curve = self.curve()
        for i, gradient in enumerate(self.gradients):
            found |= {f"{name}@{gradient:g}": values[i] for name, values in curve.items()}
        return found

    def curve(self) -> dict[str, Tensor]:
        """The same as curves over ``gradients``, (gradients,), float64: ``D``, ``G``, ``R`` and ``C<percent>``."""
        # mean over all ordered pairs of different images
        pairs = 2 * (self.count * self.squares - self.total.square().sum()).clamp_min(0) / (self.count - 1)
        spread = pairs / self.count
        moved, noisy = self.deformed / self.count, self.noisy / self.count
        curve = {"D": moved / spread, "G": noisy / spread, "R": self.deformed / self.noisy}
        constants = dim_zero_cat(self.constants)
        for quantile in self.quantiles:
            curve[f"C{100 * quantile:g}"] = constants.nanquantile(quantile, 0)  # a black image has none
        return curve


def _outputs(network: Network, images: Tensor) -> Tensor:
    outputs = network(images)
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(images):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(
            f"DeformationStability: {shape} from the network for {len(images)} images, expected (batch, ...)"
        )
    return outputs.reshape(len(images), -1).double()


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = x.double().flatten(1).norm(dim=1)
    return norms


def _fingerprint(images: Tensor) -> int:
    """A number that other images do not have; exact, so that it is the same on all devices."""
    bits = images.detach().float().contiguous().view(torch.int32).flatten(1).long()
    return int((bits * torch.arange(1, bits.shape[1] + 1, device=bits.device)).sum())
