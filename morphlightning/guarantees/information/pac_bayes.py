r"""PAC-Bayes bounds in closed form for chains of max-plus layers: margins are exchanged for bits.

With probability at least :math:`1 - \delta` over m training samples, for all laws Q of weights at once,

.. math:: \mathrm{kl}\bigl(\hat L(Q) \,\|\, L(Q)\bigr) \le \frac{\mathrm{KL}(Q \| P) + \log(2 \sqrt m / \delta)}{m}

where P is a prior that does not depend on the samples, L(Q) the mean of a loss in [0, 1] over fresh samples and draws
of the weights, and its hat that over the training samples. Here Q are boxes around the weights that are so small, by
the weight-Lipschitz lemma, that the training error of all draws is known without drawing.

Source: the inequality (PAC-Bayes-kl) is recalled with this constant and derived again in docs/guarantees.md; its use
for max-plus layers is derived there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError
from morphlightning.functional.divergences import to_bits
from morphlightning.guarantees.information.chains import TapChain
from morphlightning.guarantees.information.priors import TapPrior
from morphlightning.guarantees.information.taps import Taps, observed
from morphlightning.guarantees.robustness.margins import margin
from morphlightning.layers import MorphLayer

Kind = Literal["gibbs", "deterministic"]
GAMMAS = tuple(1e-3 * 2 ** (k / 2) for k in range(20))
BOUNDS = tuple(2 ** (k / 2) for k in range(-4, 7))
DENSITIES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
ROUNDING = 1e-9
"""By how much margins, which are computed in float64, are taken to be smaller than they are."""


# ------------------------------------------------------------------------------------------------- the inequality
def binary_kl(q: float, p: float) -> float:
    """KL of a coin with probability q to one with p, in nats."""

    def term(a: float, b: float) -> float:
        return 0.0 if a == 0 else math.inf if b == 0 else a * math.log(a / b)

    return term(q, p) + term(1 - q, 1 - p)


def kl_inverse(q: float, nats: float) -> float:
    """The largest p with binary_kl(q, p) <= nats, rounded up.

    Raises:
        ConfigError: q is no probability, or nats negative.
    """
    if not (0 <= q <= 1 and nats >= 0):
        raise ConfigError(f"kl_inverse: expected q in [0, 1] and nats >= 0, got {q} and {nats}")
    low, high = q, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if binary_kl(q, middle) <= nats:
            low = middle
        else:
            high = middle
    return high


def pac_bayes_kl(empirical: float, nats: float, samples: int, delta: float = 0.05) -> float:
    """The bound on the mean loss of fresh samples: kl_inverse(empirical, (nats + log(2 sqrt(m) / delta)) / m).

    Args:
        empirical: Mean loss on the samples, of draws from the posterior.
        nats: KL of the posterior to the prior.
        samples: m.
        delta: One minus the confidence.

    Raises:
        ConfigError: Numbers that cannot be.
    """
    if samples < 1 or not 0 < delta < 1:
        raise ConfigError(f"pac_bayes_kl: expected samples >= 1 and delta in (0, 1), got {samples} and {delta}")
    return kl_inverse(empirical, (nats + math.log(2 * math.sqrt(samples) / delta)) / samples)


# ------------------------------------------------------------------------------------------------------ evidence
@dataclass(frozen=True)
class Evidence:
    """What training samples tell about a chain: all that the bounds need of them.

    Attributes:
        samples: Their number, m.
        gammas: Margins that the bounds may use, in the units of the logits.
        failures: For each of them the number of samples whose margin is not above it.
        errors: Samples that are classified wrongly (margin <= 0).
        taps: What the samples tell about each layer's weights.
    """

    samples: int
    gammas: tuple[float, ...]
    failures: Tensor
    errors: int
    taps: Mapping[str, Taps]


@torch.no_grad()
def evidence(chain: TapChain, batches: Iterable[Sequence[Tensor]], gammas: Sequence[float] = GAMMAS) -> Evidence:
    """Run the chain over all samples (inputs, labels, ...), batch by batch.

    Raises:
        DataError: There are no samples.
        ConfigError: gammas that are not positive and rising.
    """
    if not gammas or not all(0 < a < b for a, b in zip(gammas, (*gammas[1:], math.inf), strict=True)):
        raise ConfigError(f"evidence: gammas must be positive and rise, got {tuple(gammas)}")
    thresholds = torch.tensor([0.0, *gammas], dtype=torch.float64) + ROUNDING
    failures, samples = torch.zeros(len(thresholds), dtype=torch.int64), 0
    device = next(chain.sequence.parameters()).device
    with observed(chain) as found:
        for inputs, labels, *_ in batches:
            margins = margin(chain(inputs.to(device)), labels.to(device)).cpu()
            failures += (margins[:, None] <= thresholds).sum(0)
            samples += len(margins)
    if not samples:
        raise DataError("a bound needs training samples, and there are none")
    names = {id(layer): name for name, layer in chain.layers.items()}
    modules = dict(chain.named_modules())
    taps = {names[id(modules[name])]: seen for name, seen in found.items()}
    return Evidence(samples, tuple(gammas), failures[1:], int(failures[0]), taps)


# -------------------------------------------------------------------------------------------------------- bounds
@dataclass(frozen=True)
class RiskBound:
    """A bound on the probability that a fresh sample is classified wrongly.

    It holds with probability at least 1 - delta over the draw of the training samples, if these are independent and
    distributed as the fresh ones. Each bound of each kind holds so by itself.

    Attributes:
        kind: ``"gibbs"``: of a network whose weights are drawn anew from the posterior for each sample;
            ``"deterministic"``: of the network itself.
        value: The bound, at most 1.
        delta: One minus the confidence.
        samples: m.
        gamma: The margin that pays for the boxes.
        empirical: Share of training samples whose margin is not above gamma.
        nats: KL of the posterior, with what was paid for choosing the prior and the design.
        priors: The prior of each stage.
        intervals: For each layer the lower and upper ends of the posterior's intervals.
    """

    kind: Kind
    value: float
    delta: float
    samples: int
    gamma: float
    empirical: float
    nats: float
    priors: tuple[TapPrior, ...]
    intervals: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)

    @property
    def bits(self) -> float:
        """The divergence in bits."""
        return to_bits(self.nats)

    def draw(self, chain: TapChain, generator: torch.Generator | None = None) -> nn.Sequential:
        """The network with weights from the posterior, in float64; missing ones by its masks."""
        other = copy.deepcopy(chain)
        for stage, prior in zip(other.stages, self.priors, strict=True):
            for name, layer in stage.layers.items():
                low, high = (end.cpu() for end in self.intervals[name])
                weight = prior.draw(low, high, generator).to(layer.weight.device)
                layer.mask.copy_(weight > -math.inf)
                layer.weight.copy_(weight.masked_fill(~layer.mask, 0))
        return other.sequence


@dataclass(frozen=True)
class PACBayes:
    r"""Bounds for chains, with the prior chosen from a grid that is paid for.

    Let :math:`\hat L_\gamma` be the share of training samples whose margin is at most gamma, and :math:`\rho_l` the
    radius of stage l, shared out in proportion to the number of taps that need one.

    - ``gibbs``: :math:`\sum_l \rho_l = \gamma / 2`. A tap that wins on the training samples lies within rho of its
      weight; one that never wins anywhere below its ceiling plus rho, or is missing. Logits of training samples move by
      at most gamma / 2 and margins by gamma, so the training error of every draw is at most :math:`\hat L_\gamma`. Any
      gamma may be chosen at no price, because the inequality holds for all posteriors at once.
    - ``deterministic``: :math:`\sum_l \rho_l = \gamma / 4`. All taps that are there lie within rho, and those that are
      missing (masks) are missing in the posterior. Margins of any sample move by at most gamma / 2, so the error of the
      network is at most the share of margins up to gamma / 2 of draws; on the training samples that is at most
      :math:`\hat L_\gamma`. Here gamma is part of the loss, so choosing it costs the log of the number of gammas.

    The price of the prior is the log of the number of priors that could have been chosen: bounds times densities, for
    each stage. If the design of the network (widths, pooling, ...) was chosen after its training samples were seen,
    ``alternatives`` must be at least the number of designs among which it was; its log is paid, too. Learning rates,
    numbers of epochs and seeds cost nothing: they choose weights, and the inequality is for all of them.

    Args:
        delta: One minus the confidence.
        bounds: Of the priors.
        densities: Of the priors.
        alternatives: Number of designs.

    Raises:
        ConfigError: Numbers that cannot be.

    Source: derived in docs/guarantees.md.
    """

    delta: float = 0.05
    bounds: tuple[float, ...] = BOUNDS
    densities: tuple[float, ...] = DENSITIES
    alternatives: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.delta < 1 or self.alternatives < 1 or not self.bounds or not self.densities:
            raise ConfigError(
                f"PACBayes: expected delta in (0, 1), alternatives >= 1, bounds and densities, got {self.delta}, "
                f"{self.alternatives}, {self.bounds} and {self.densities}"
            )
        for bound in self.bounds:
            for density in self.densities:
                TapPrior(bound, density)

    def bound(self, chain: TapChain, seen: Evidence, kind: Kind = "gibbs") -> RiskBound:
        """The best bound over the margins of the evidence."""
        best = self.at(chain, seen, kind, 0)
        for number in range(1, len(seen.gammas)):
            if float(seen.failures[number]) >= best.value * seen.samples:  # no bound is below its empirical share
                break
            best = min(best, self.at(chain, seen, kind, number), key=lambda bound: (bound.value, bound.nats))
        return best

    def at(self, chain: TapChain, seen: Evidence, kind: Kind, number: int) -> RiskBound:
        """The bound with one of the evidence's margins, by its number."""
        if kind not in ("gibbs", "deterministic"):
            raise ConfigError(f"PACBayes: kind must be 'gibbs' or 'deterministic', got {kind!r}")
        gamma, exact = seen.gammas[number], kind == "deterministic"
        needed = [_needed(stage.layers, seen.taps, exact) for stage in chain.stages]
        total = sum(needed)
        nats = math.log(self.alternatives) + (math.log(len(seen.gammas)) if exact else 0.0)
        priors: list[TapPrior] = []
        intervals: dict[str, tuple[Tensor, Tensor]] = {}
        for stage, count in zip(chain.stages, needed, strict=True):
            radius = gamma / (4 if exact else 2) * count / total
            parts = {name: _interval(layer, seen.taps[name], radius, exact) for name, layer in stage.layers.items()}
            cost, prior = self._cheapest(list(parts.values()))
            nats += cost
            priors.append(prior)
            intervals |= parts
        empirical = float(seen.failures[number]) / seen.samples
        value = pac_bayes_kl(empirical, nats, seen.samples, self.delta)
        return RiskBound(kind, value, self.delta, seen.samples, gamma, empirical, nats, tuple(priors), intervals)

    def _cheapest(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, TapPrior]:
        """The prior that makes a stage's intervals cheapest, and their cost with that of the choice."""
        low, high = (torch.cat([part[end].flatten() for part in parts]) for end in (0, 1))
        priors = [TapPrior(bound, density) for bound in self.bounds for density in self.densities]
        costs = [float(prior.nats(low, high).sum()) for prior in priors]
        best = min(range(len(priors)), key=costs.__getitem__)
        return costs[best] + math.log(len(priors)), priors[best]


def _needed(layers: Mapping[str, MorphLayer], taps: Mapping[str, Taps], exact: bool) -> int:
    """How many taps of a stage need an interval of their own."""
    return sum(int((layer.mask if exact else taps[name].winning).sum()) for name, layer in layers.items())


def _interval(layer: MorphLayer, taps: Taps, radius: float, exact: bool) -> tuple[Tensor, Tensor]:
    """Lower and upper ends, for each weight of a layer."""
    weight = layer.effective_weight
    near = layer.mask if exact else taps.winning
    above = weight if exact else taps.ceiling
    high = torch.where(near, weight, above) + radius
    return torch.where(near, weight - radius, -math.inf), high
