"""What activations tell about the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.information import gaussian_rate, gumbel_rate
from morphlightning.interfaces import Regularizer, RegularizerContext
from morphlightning.layers import GumbelDilation, MorphLayer

_RATES = {"gumbel": gumbel_rate, "lognormal": gaussian_rate, "gaussian": gaussian_rate}


@dataclass(frozen=True)
class ActivationInformation(Regularizer):
    r"""An upper bound on what noisy activations tell about the input, in nats a sample, in closed form.

    If noise were added to the outputs h of the chosen layers, each unit by itself, Z would tell at most

    ===========  =====================================  ================================================
    kind         channel                                rate: E is the mean over the batch
    ===========  =====================================  ================================================
    gumbel       Z = h + Gumbel(0, noise)               E[h] / noise + log E[exp(-h / noise)]
    gaussian     Z = h + N(0, noise^2)                  log(1 + Var[h] / noise^2) / 2
    lognormal    Z = h exp(N(0, noise^2)), h > 0        log(1 + Var[log h] / noise^2) / 2
    ===========  =====================================  ================================================

    nats about h, and so about the input: the mean divergence of the law of Z given h to the best law of its kind for
    Z. The term is the weight times the sum over all units of all chosen layers (of convolutions: over all positions,
    too), never their mean, and the mean over the samples; nothing is divided by the size of the data set.

    The mean over the batch is that of all processes; with accumulated gradients it is that of each micro-batch, as in
    batch normalization. Rates of few samples are too low: the best law for them fits them better than all others.

    Args:
        weight: Of the sum.
        kind: The channel.
        noise: Scale of the noise, in the units of h (``lognormal``: of log h).
        layers: Patterns of names of the layers; empty for all max-plus layers.

    Source: the variational information bottleneck (Alemi et al., arXiv 1612.00410) and information dropout (Achille and
    Soatto, arXiv 1611.01353); the rates are derived in docs/guarantees.md.
    """

    weight: float = 1e-3
    kind: Literal["gumbel", "lognormal", "gaussian"] = "gumbel"
    noise: float = 0.1
    layers: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.weight < float("inf") or not 0 < self.noise < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, noise > 0, got {self.weight} and {self.noise}")
        if self.kind not in _RATES:
            raise ValueError(f"kind must be one of {', '.join(_RATES)}, got {self.kind!r}")
        if isinstance(self.layers, str):
            raise ValueError(f"layers must be a sequence of patterns, got the string {self.layers!r}")

    def watches(self, module: nn.Module) -> Sequence[str]:
        """The names that match a pattern."""
        layers = {name: child for name, child in module.named_modules() if name}
        if not self.layers:
            return [name for name, child in layers.items() if isinstance(child, MorphLayer)]
        return [name for name in layers if any(fnmatch(name, pattern) for pattern in self.layers)]

    def bind(self, module: nn.Module) -> None:
        """Every pattern must match a layer, and none may add noise of its own."""
        names = [name for name, _ in module.named_modules() if name]
        for pattern in self.layers:
            if not any(fnmatch(name, pattern) for name in names):
                raise ConfigError(f"activation_information: no layer matches {pattern!r}; there are {', '.join(names)}")
        watched = self.watches(module)
        if not watched:
            raise ConfigError("activation_information: the network has no max-plus layers; name layers in layers=[...]")
        for name in watched:
            if isinstance(module.get_submodule(name), GumbelDilation):
                raise ConfigError(
                    f"activation_information: layer {name!r} (GumbelDilation) draws noise itself, so its output is Z, "
                    "not h; use weight_information for it, and name other layers here"
                )

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted sum of the rates."""
        rates = []
        for name in self.watches(module):
            if name not in context.activations:
                raise ConfigError(f"activation_information: layer {name!r} was not called in the forward pass")
            activation = context.activations[name].flatten(1)
            h = activation if activation.dtype == torch.float64 else activation.float()
            if self.kind == "lognormal":
                if not bool((h > 0).all()):
                    raise DataError(
                        f"activation_information: layer {name!r} gives values <= 0 (least {h.min():.3g}), which noise "
                        "that multiplies cannot carry; put Softplus behind it, or take kind gaussian or gumbel"
                    )
                h = h.log()
            rates.append(_RATES[self.kind](h, self.noise, context.gather).sum())
        return self.weight * torch.stack(rates).sum()
