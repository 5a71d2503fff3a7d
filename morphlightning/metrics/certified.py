"""How many samples are certified, and how far: with what a sample of that size says about the population."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from morphlightning.errors import ConfigError
from morphlightning.guarantees.robustness import certified_margins, certified_radii
from morphlightning.guarantees.robustness.boxes import Clip, check_eps
from morphlightning.guarantees.robustness.certificates import Method, classifier_of, largest_radius
from morphlightning.lipschitz.spec import Measured


class CertifiedAccuracy(Metric):
    r"""Share of samples whose label no input within eps can change, with Wilson's confidence intervals.

    A sample counts where :func:`morphlightning.guarantees.robustness.certified_margins` is positive; so the share is at
    most the accuracy under any attack within eps, and at most the accuracy. Of k such samples of n, with the quantile z
    of the normal distribution, the interval is

    .. math:: \frac{k + z^2/2 \pm z\sqrt{k(n - k)/n + z^2/4}}{n + z^2}.

    It is about samples of the same population; a certificate itself is certain.

    Args:
        eps: Radii in the units of the data, such as 0.3 or 8/255 for pixels in [0, 1].
        method: ``lipschitz``, ``interval``, ``exact`` or ``int16``, which is about the exported network.
        clip: Range of the data.
        norm: Of the ball: ``linf``, or ``l2`` for ``lipschitz``.
        confidence: Of the intervals.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: An eps outside (0, width of clip], which is none in the units of the data.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Example:
        >>> metric = CertifiedAccuracy(eps=[0.1, 0.3])
        >>> for images, labels in loader:  # doctest: +SKIP
        ...     metric.update(network, images, labels)
        >>> metric.compute()  # doctest: +SKIP
        {'accuracy': 0.97, 'accuracy/low': 0.966, ..., 'certified@0.1': 0.91, ...}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    hits: Tensor
    count: Tensor

    def __init__(
        self,
        eps: float | Sequence[float],
        method: Method = "interval",
        clip: Clip = (0.0, 1.0),
        norm: Measured = "linf",
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.eps = (float(eps),) if isinstance(eps, int | float) else tuple(map(float, eps))
        if not self.eps or not 0 < confidence < 1:
            raise ConfigError(f"expected some eps and a confidence in (0, 1), got eps={eps}, confidence={confidence}")
        for radius in self.eps:
            check_eps(radius, None if norm == "l2" else clip)
        self.method, self.clip, self.norm, self.confidence = method, clip, norm, confidence
        self.add_state("hits", torch.zeros(1 + len(self.eps), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Certify a batch.

        Args:
            network: The classifier, in evaluation mode; a Sequential of layers with rules.
            images: (batch, ...), in the range of the data.
            labels: Classes (batch,).

        Raises:
            NotCertifiable: No bound is known for a layer.
            DataError: Images outside the range of the data.
        """
        network = classifier_of(network, self.method)
        for i, eps in enumerate(self.eps, 1):
            margins = certified_margins(network, images, labels, eps, self.method, self.clip, self.norm)
            self.hits[i] += (margins > 0).sum()
        with torch.no_grad():
            self.hits[0] += (network(images).argmax(1) == labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``certified@<eps>``, each with ``/low`` and ``/high``, the ends of its interval; scalars."""
        found: dict[str, Tensor] = {}
        for name, hits in zip(["accuracy", *(f"certified@{eps:.4g}" for eps in self.eps)], self.hits, strict=True):
            low, high = wilson(hits, self.count, self.confidence)
            found |= {name: hits / self.count, f"{name}/low": low, f"{name}/high": high}
        return found


def wilson(hits: Tensor, count: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Ends of Wilson's confidence interval of a proportion; see :class:`CertifiedAccuracy`."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle, spread = hits + z * z / 2, z * (hits * (count - hits) / count + z * z / 4).sqrt()
    return ((middle - spread) / (count + z * z)).clamp_min(0), ((middle + spread) / (count + z * z)).clamp_max(1)


class CertifiedRadius(Metric):
    r"""Radii within which decisions are certified: mean, quantiles, area under the curve of certified accuracy.

    The radius of a sample that is decided wrongly is 0. As :math:`\int_0^R \mathrm{acc}(\epsilon)\,d\epsilon` is the
    mean of :math:`\min(r, R)`, the area is that over R, the mean certified accuracy of all radii up to ``limit``.

    Args:
        limit: R, in the units of the data; the width of ``clip`` if None.
        method: As for :func:`morphlightning.guarantees.robustness.certified_radii`.
        clip: Range of the data.
        norm: Of the balls.
        quantiles: Shares of samples of no larger radius.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: A limit outside (0, width of clip], or none where ``clip`` is None.

    Source: the average certified radius (Zhai et al., MACER, arXiv 2001.02378); the identity is derived here.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    radii: list[Tensor] | Tensor

    def __init__(
        self,
        limit: float | None = None,
        method: Method = "lipschitz",
        clip: Clip = (0.0, 1.0),
        norm: Measured = "linf",
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.limit = largest_radius(limit, clip)
        check_eps(self.limit, None if norm == "l2" else clip)
        self.method, self.clip, self.norm, self.quantiles = method, clip, norm, tuple(quantiles)
        self.add_state("radii", [], dist_reduce_fx="cat")

    def update(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Certify a batch; arguments and errors as for :class:`CertifiedAccuracy`."""
        found = certified_radii(network, images, labels, self.method, self.clip, self.norm, self.limit)
        self.radii.append(found)  # type: ignore[union-attr]

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``area`` and ``quantile@<share>``; scalars."""
        radii = dim_zero_cat(self.radii)
        shares = radii.new_tensor(self.quantiles)
        found = {"mean": radii.mean(), "area": radii.clamp_max(self.limit).mean() / self.limit}
        return found | {f"quantile@{q:g}": r for q, r in zip(self.quantiles, radii.quantile(shares), strict=True)}

    def curve(self, eps: Tensor) -> Tensor:
        """Certified accuracy at each eps, of what this process has seen."""
        return (dim_zero_cat(self.radii) > eps[:, None]).double().mean(1)
