"""A dilation whose weights are random: Gumbel noise, for which everything has a closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotCertifiable
from morphlightning.functional.divergences import EULER, gumbel_kl
from morphlightning.functional.soft import soft_dilation
from morphlightning.interfaces import LipschitzSpec
from morphlightning.layers.dense import DenseLayer, Dilation


class GumbelDilation(DenseLayer):
    r"""Dilation with independent weights :math:`w_{ij} \sim \mathrm{Gumbel}(\mu_{ij}, B)`.

    (..., in_features) to (..., out_features). Maxima of Gumbel variables of one scale are Gumbel variables, so that

    .. math:: \max_j x_j + w_{ij} \sim \mathrm{Gumbel}\bigl(m_i, B\bigr), \qquad
              m_i = B \log \sum_j e^{(x_j + \mu_{ij}) / B},

    the soft dilation at inverse temperature 1/B. In training a forward pass draws one number for each output of each
    sample, as if each sample met weights of its own (local reparametrization); in evaluation it gives the mean
    :math:`m_i + \gamma B`. The derivative of the mean by an input is the probability that its tap wins.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        scale: B > 0, in the units of x, shared by all weights; the standard deviation is pi B / sqrt(6) = 1.28 B.
        learn_scale: Whether B is learned, through its logarithm.
        prior_location: Location of the prior, which is a Gumbel law, too.
        prior_scale: Its scale; None for the one that B starts with.
        **options: initializer, mask, generator; see :class:`MorphLayer`. The weight holds the locations; missing
            ones never win and carry no information.

    Raises:
        ConfigError: A scale that is not positive, or an option of hard layers.

    Source: derived in docs/guarantees.md.
    """

    op: ClassVar[str] = "dilation"
    roles: ClassVar[Mapping[str, str]] = {"log_scale": "scale"}
    log_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        scale: float = 0.1,
        learn_scale: bool = False,
        prior_location: float = 0.0,
        prior_scale: float | None = None,
        **options: Any,
    ) -> None:
        refused = [name for name in ("derivative", "heuristic") if name in options]
        if refused:
            raise ConfigError(
                f"GumbelDilation does not take {' or '.join(refused)}: its mean is smooth, its gradient is its "
                "derivative; use Dilation for rules at ties"
            )
        prior_scale = scale if prior_scale is None else prior_scale
        if not (0 < scale < math.inf and 0 < prior_scale < math.inf):
            raise ConfigError(
                f"GumbelDilation: scale and prior_scale must be finite and > 0, got {scale} and {prior_scale}"
            )
        super().__init__(in_features, out_features, **options)
        self.prior_location, self.prior_scale = prior_location, prior_scale
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """B, without axes."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """A draw of the dilation in training, its mean in evaluation."""
        scale, missing = self.scale, ~self.mask
        weight = self.effective_weight.masked_fill(missing, 0) / scale  # -inf would make the scale's gradient NaN
        location = scale * soft_dilation(x / scale, weight.masked_fill(missing, -math.inf))
        noise = -torch.empty_like(location).exponential_().log() if self.training else EULER
        return (location + scale * noise).to(x.dtype)

    def kl(self) -> Tensor:
        """KL of the law of the weights to the prior, in nats, the sum over those that are not missing."""
        of_each = gumbel_kl(self.weight, self.scale, self.prior_location, self.prior_scale)
        return of_each.masked_fill(~self.mask, 0).sum()

    def harden(self) -> Dilation:
        """The dilation with the mean weights, mu + gamma B."""
        layer = Dilation(self.in_features, self.out_features, initializer="zeros")
        layer.train(self.training).to(self.weight.device, self.weight.dtype)
        layer.mask.copy_(self.mask)
        with torch.no_grad():
            layer.weight.copy_(self.weight + EULER * self.scale)
        return layer

    def lipschitz_spec(self) -> LipschitzSpec:
        """1 in the sup norm, in evaluation."""
        if self.training:
            raise NotCertifiable("it draws random numbers in training mode; call eval() first")
        return LipschitzSpec(1.0, "linf", "linf", True, "log-sum-exp: increasing, it commutes with adding constants")

    def extra_repr(self) -> str:
        """Shape and scale."""
        return f"{super().extra_repr()}, scale={float(self.scale.detach()):g}"
