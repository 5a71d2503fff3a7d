"""What the weights tell about the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.information import posteriors
from morphlightning.interfaces import Regularizer, RegularizerContext


@dataclass(frozen=True)
class WeightInformation(Regularizer):
    r"""Information in random weights, in nats a training sample.

    .. math:: \frac{\lambda}{m} \sum_t \mathrm{KL}(q_t \| p_t)

    over all tensors t with a posterior (``morphlightning.interfaces.Posterior``: ``GumbelDilation``, the
    parametrizations of :mod:`morphlightning.guarantees.information`, or your own module with a method ``kl``), each
    divergence summed over its weights, and m training samples. Nothing is averaged over weights or tensors, and the
    division by m happens here alone. Beside a data loss that is the mean negative log-likelihood of a sample
    (cross-entropy; the squared error only over twice a variance), weight 1 gives the free energy over m, of which the
    exact posterior is the minimum; other weights temper it.

    The term is the same in each micro-batch and on each process, so that accumulated and reduced gradients are its own.

    Args:
        weight: lambda.

    Source: the variational bound on the evidence (minimum description length, Hinton and van Camp 1993).
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")

    def bind(self, module: nn.Module) -> None:
        """Some weights must be random."""
        if not any(True for _ in posteriors(module)):
            raise ConfigError(
                "weight_information: no weight of the network is random; use GumbelDilation, or make tensors random "
                "with morphlightning.guarantees.information.GaussianPosterior.of(layer)"
            )

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted sum over the number of training samples."""
        if context.dataset_size < 1:
            raise ConfigError(
                "weight_information: the number of training samples is not known, and the information is divided by "
                "it; train with a DataLoader over a dataset that has a length"
            )
        total = torch.stack([posterior.kl() for _, posterior in posteriors(module)]).sum()
        return self.weight * total / context.dataset_size
