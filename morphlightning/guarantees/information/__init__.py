"""What weights and activations tell about the data: divergences, random weights, and bounds on the error they imply."""

from morphlightning.functional.divergences import (
    gaussian_kl,
    gumbel_kl,
    log_normal_kl,
    log_uniform_kl,
    to_bits,
    uniform_kl,
)
from morphlightning.guarantees.information.chains import Stage, TapChain
from morphlightning.guarantees.information.pac_bayes import (
    Evidence,
    PACBayes,
    RiskBound,
    binary_kl,
    evidence,
    kl_inverse,
    pac_bayes_kl,
)
from morphlightning.guarantees.information.posteriors import (
    BoxPosterior,
    GaussianPosterior,
    GumbelPosterior,
    WeightPosterior,
    posteriors,
)
from morphlightning.guarantees.information.priors import TapPrior
from morphlightning.guarantees.information.rates import gaussian_rate, gumbel_rate
from morphlightning.guarantees.information.taps import Taps, has_winners, keep_winners, observe, observed

__all__ = [
    "BoxPosterior",
    "Evidence",
    "GaussianPosterior",
    "GumbelPosterior",
    "PACBayes",
    "RiskBound",
    "Stage",
    "TapChain",
    "TapPrior",
    "Taps",
    "WeightPosterior",
    "binary_kl",
    "evidence",
    "gaussian_kl",
    "gaussian_rate",
    "gumbel_kl",
    "gumbel_rate",
    "has_winners",
    "keep_winners",
    "kl_inverse",
    "log_normal_kl",
    "log_uniform_kl",
    "observe",
    "observed",
    "pac_bayes_kl",
    "posteriors",
    "to_bits",
    "uniform_kl",
]
