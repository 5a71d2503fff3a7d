"""What weights and activations tell about the data: divergences, random weights, and bounds on the error they imply."""

from morphlightning.functional.divergences import (
    gaussian_kl,
    gumbel_kl,
    log_normal_kl,
    log_uniform_kl,
    to_bits,
    uniform_kl,
)
from morphlightning.guarantees.information.posteriors import (
    BoxPosterior,
    GaussianPosterior,
    GumbelPosterior,
    WeightPosterior,
    posteriors,
)
from morphlightning.guarantees.information.rates import gaussian_rate, gumbel_rate

__all__ = [
    "BoxPosterior",
    "GaussianPosterior",
    "GumbelPosterior",
    "WeightPosterior",
    "gaussian_kl",
    "gaussian_rate",
    "gumbel_kl",
    "gumbel_rate",
    "log_normal_kl",
    "log_uniform_kl",
    "posteriors",
    "to_bits",
    "uniform_kl",
]
