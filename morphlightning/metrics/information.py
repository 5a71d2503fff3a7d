"""How much random weights know, and which taps of max-plus layers ever win."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from morphlightning.errors import ConfigError
from morphlightning.functional.divergences import to_bits
from morphlightning.guarantees.information.posteriors import posteriors
from morphlightning.guarantees.information.taps import Taps, has_winners, observed
from morphlightning.layers import MorphLayer

Unit = Literal["bits", "nats"]


class InformationInWeights(Metric):
    r"""Information in the random weights of a module: :math:`\mathrm{KL}(q \| p)`, tensor by tensor.

    It is what an exact posterior costs to send to somebody who knows the prior, in bits or in nats; sums over weights,
    never means. Weights without a posterior (``morphlightning.interfaces.Posterior``) are left out: they have no finite
    information. Processes hold the same weights, so the value is that of one of them.

    Args:
        unit: ``"bits"`` or ``"nats"``.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: No such unit, or in ``update`` a module without random weights.

    Source: derived in docs/guarantees.md.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    information: Tensor

    def __init__(self, unit: Unit = "bits", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if unit not in ("bits", "nats"):
            raise ConfigError(f"InformationInWeights: unit must be 'bits' or 'nats', got {unit!r}")
        self.unit, self.names = unit, list[str]()
        self.add_state("information", torch.zeros(0), dist_reduce_fx="mean")

    def update(self, module: nn.Module) -> None:
        """Look at the weights as they are now; earlier ones are forgotten."""
        found = {name: posterior.kl().detach() for name, posterior in posteriors(module)}
        if not found:
            raise ConfigError(f"InformationInWeights: {type(module).__name__} has no random weights")
        self.names, self.information = list(found), torch.stack(list(found.values()))

    def compute(self) -> dict[str, Tensor]:
        """By name of tensor or layer, and ``"total"``, their sum."""
        information = to_bits(self.information) if self.unit == "bits" else self.information
        return {**dict(zip(self.names, information, strict=True)), "total": information.sum()}


class WinningTaps(Metric):
    r"""Which taps of max-plus layers ever win on the data: all that the data can tell about the others is a ceiling.

    A tap wins where its input plus its weight is the maximum of its unit (of an erosion: where the difference is the
    minimum). One that never wins could be anything below its ceiling :math:`\min_n (y_{ni} - x_{nj})` without changing
    an output on the data; the slack is how far above the weight that is.

    ``compute`` gives, by name of layer and for ``"all"``, the number of winning taps and, under ``<name>/share``, their
    share of those that are not missing. ``taps`` has the rest.

    Args:
        network: Its layers whose outputs are single maxima or minima are watched: (signed) dilations and erosions,
            dense or windowed, and pooling; soft and composed operators are not.
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: There are no such layers.

    Source: derived in docs/guarantees.md.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, network: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._network = (network,)  # in a tuple: it is no part of the metric
        self.names = [name for name, layer in network.named_modules() if has_winners(layer)]
        if not self.names:
            raise ConfigError(f"WinningTaps: {type(network).__name__} has no layers of single maxima or minima")
        for number, name in enumerate(self.names):
            none = Taps.none(self._layer(name))
            self.add_state(f"wins_{number}", none.wins, dist_reduce_fx="sum")
            self.add_state(f"ceiling_{number}", none.ceiling, dist_reduce_fx="min")

    def update(self, *inputs: Any) -> None:
        """Run the network over a batch, in the mode it is in and without gradients."""
        (network,) = self._network
        with torch.no_grad(), observed(network) as found:
            network(*inputs)
        for number, name in enumerate(self.names):
            seen = self.taps(number).joined(found[name])
            setattr(self, f"wins_{number}", seen.wins)
            setattr(self, f"ceiling_{number}", seen.ceiling)

    def taps(self, layer: int | str) -> Taps:
        """Wins and ceilings of a layer, by its name or its number, on this process."""
        number = layer if isinstance(layer, int) else self.names.index(layer)
        return Taps(getattr(self, f"wins_{number}"), getattr(self, f"ceiling_{number}"))

    def slack(self, layer: str) -> Tensor:
        """By how much each weight of a layer could rise, in the weight's shape: 0 of winners, inf of missing ones."""
        weight = self._layer(layer).effective_weight.detach().double()
        return torch.where(weight > -torch.inf, self.taps(layer).ceiling - weight, torch.inf).clamp_min(0)

    def compute(self) -> dict[str, Tensor]:
        """Numbers and shares."""
        winning = torch.stack([self.taps(number).winning.sum() for number in range(len(self.names))])
        there = torch.stack([self._layer(name).mask.sum() for name in self.names])
        names = [*self.names, "all"]
        counts = torch.cat([winning, winning.sum()[None]])
        shares = counts / torch.cat([there, there.sum()[None]])
        return dict(zip(names, counts, strict=True)) | {
            f"{name}/share": share for name, share in zip(names, shares, strict=True)
        }

    def _layer(self, name: str) -> MorphLayer:
        layer = self._network[0].get_submodule(name)
        assert isinstance(layer, MorphLayer)
        return layer
