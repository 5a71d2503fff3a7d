"""How much noise a network stands, and how many bits that leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from shared.networks import Samples, accuracy
from torch import Tensor, nn

from morphlightning.functional.divergences import EULER
from morphlightning.guarantees.information import gaussian_kl, gaussian_rate, gumbel_rate, to_bits

DRAWS = 3


def tolerated(accuracy_at: Callable[[float], float], least: float, steps: int = 9) -> float:
    """The largest noise, relative to the spread of what it is added to, that leaves the accuracy at ``least``."""
    low, high = -14.0, 2.0  # powers of two
    for _ in range(steps):
        middle = (low + high) / 2
        if accuracy_at(2**middle) >= least:
            low = middle
        else:
            high = middle
    return 2**low


@torch.no_grad()
def bits_of_weights(network: nn.Module, samples: Samples, drop: float) -> tuple[float, float]:
    """Bits that weights have where Gaussian noise costs ``drop`` of the accuracy, and that noise.

    Noise and prior of each tensor are Gaussian; the prior has the tensor's own mean and deviation, the noise is the
    same share of that deviation in all.
    """
    spreads = {name: float(p.std()) for name, p in network.named_parameters() if p.numel() > 1 and p.std() > 0}

    def accuracy_at(noise: float) -> float:
        generator, found = torch.Generator().manual_seed(0), 0.0
        for _ in range(DRAWS):
            other = copy.deepcopy(network)
            for name, parameter in other.named_parameters():
                if name in spreads:
                    parameter += noise * spreads[name] * torch.randn(parameter.shape, generator=generator)
            found += accuracy(other, samples) / DRAWS
        return found

    noise = tolerated(accuracy_at, accuracy(network, samples) - drop)
    nats = 0.0
    for name, parameter in network.named_parameters():
        if name in spreads:
            w = parameter.double()
            nats += float(gaussian_kl(w, noise * spreads[name], w.mean(), spreads[name]).sum())
    return to_bits(nats), noise


@torch.no_grad()
def bits_of_activations(network: nn.Sequential, layer: int, samples: Samples, drop: float) -> dict[str, float]:
    """Bits an image that pass a layer's outputs where noise costs ``drop`` of the accuracy, for two kinds of noise."""
    x, y = samples
    hidden = torch.cat([network[: layer + 1](part).flatten(1) for part in x.split(500)])
    shape, spread = network[: layer + 1](x[:1]).shape[1:], float(hidden.std())
    least = accuracy(network, samples) - drop

    def gumbel(generator: torch.Generator) -> Tensor:
        return -torch.empty_like(hidden).exponential_(generator=generator).log() - EULER

    def gaussian(generator: torch.Generator) -> Tensor:
        return torch.randn(hidden.shape, generator=generator)

    found = {}
    for name, draw, rate in (("gumbel", gumbel, gumbel_rate), ("gaussian", gaussian, gaussian_rate)):

        def accuracy_at(noise: float, draw: Callable[[torch.Generator], Tensor] = draw) -> float:
            noisy = hidden + noise * spread * draw(torch.Generator().manual_seed(0))
            return accuracy(network[layer + 1 :], (noisy.view(-1, *shape), y))

        noise = tolerated(accuracy_at, least) * spread
        found[name] = float(to_bits(rate(hidden.double(), noise).sum()))
    return found
