"""Stochastic gradient descent in the geometry of max-plus weights, beside the usual one for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Group, Heuristic, StepStatistics
from morphlightning_plugins.heuristics.updates import CountNormalized, RadiusClipped, SupNorm
from morphlightning_plugins.optimizers.scheduled import Scheduled


class MorphDescent(torch.optim.Optimizer):
    """SGD with momentum, and for weights that have a site the step of :class:`MorphSgd`.

    Args:
        params: Parameter groups with lr, momentum and weight_decay; those of max-plus weights with floor as well.
        sites: Statistics of the max-plus weights.
        normalize: Acts on gradients before the momentum.
        scale: Act on steps, one after the other.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        sites: Sequence[StepStatistics],
        normalize: Heuristic | None,
        scale: Sequence[Heuristic],
    ) -> None:
        super().__init__(params, {"momentum": 0.0, "weight_decay": 0.0, "floor": 0.0})
        self._sites: dict[Tensor, StepStatistics] = {site.weight: site for site in sites}
        self._normalize, self._scale = normalize, scale

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; the closure computes the gradients and applies update heuristics."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [(p, p.grad) for p in group["params"] if p.grad is not None]
            self._descend([pair for pair in moving if pair[0] not in self._sites], group)
            for p, grad in moving:
                if p in self._sites:
                    self._descend_max_plus(p, grad, group)
        return loss

    def _descend(self, moving: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        params, grads = [p for p, _ in moving], [grad for _, grad in moving]
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            grads,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for p, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self.state[p]["momentum_buffer"] = buffer

    def _descend_max_plus(self, p: Tensor, step: Tensor, group: dict[str, Any]) -> None:
        lr = group["lr"]
        rate = torch.as_tensor(lr, dtype=torch.float64, device=p.device)
        site = self._sites[p]
        statistics = {**site.of_step(), "lr": rate}
        active = statistics["count"] > 0
        if self._normalize is not None and not any(isinstance(h, CountNormalized) for h in site.updates):
            step = self._normalize.update(p, step, statistics)
        step = step.masked_fill(~active, 0)
        if group["momentum"]:
            before = self.state[p].get("momentum_buffer", torch.zeros_like(p))
            self.state[p]["momentum_buffer"] = torch.where(active, group["momentum"] * before + step, before)
            step = self.state[p]["momentum_buffer"].masked_fill(~active, 0)
        for heuristic in self._scale:
            step = heuristic.update(p, step, statistics)
        if group["weight_decay"]:
            p.sub_((p - group["floor"]).clamp_min(0), alpha=lr * group["weight_decay"])
        p.sub_(step, alpha=lr)


@dataclass(frozen=True)
class MorphSgd(Scheduled):
    """SGD whose steps of max-plus weights are means over the samples that touched them; SGD with momentum for the rest.

    For the pseudo-gradient g of a max-plus weight,

        d = g * samples / count,    m <- morph_momentum * m + d,    w <- w - lr * m

    with sums over micro-batches and processes. Where nothing touched a weight (count 0), neither w nor m changes: a
    stale average would go on moving it, and so would whatever else added to its gradient.

    Attributes:
        lr: Rate of max-plus weights. With count_normalized, 1 is Newton's step for the mean squared error inside a
            linear cell; 0.3 to 0.5 is safer where winners change.
        weight_decay: Decay of linear and convolution weights.
        schedule: See the other optimizers; it scales both rates.
        warmup: Share of all steps over which the rates rise.
        other_lr: Rate of all other parameters.
        momentum: Momentum of all other parameters.
        morph_momentum: Momentum of max-plus weights.
        count_normalized: Divide by the count; False takes the mean over the batch, as SGD does. Where a layer carries
            the heuristic of this name its gradients are divided once, by the heuristic.
        sup_norm: Scale the step of each of the K max-plus weights (layers) to lr / K in the sup norm, so that the
            output of a purely morphological network moves by at most lr.
        radius_clip: Shrink a layer's step to half this quantile of its gaps; None (default) does not. See the heuristic
            ``radius_clipped``. With a momentum it is the step itself that is held to the radius.
        morph_decay: Decay of max-plus weights w > morph_floor: w <- w - lr * morph_decay * (w - morph_floor), also of
            those that nothing touched. It lowers weights, never raises them: decay to 0 would make them win.
        morph_floor: Where that decay ends; a value with which a weight does not win any more.

    Lightning clips gradients before they come here. In a loop of your own: ``build_optimizer(model, "morph_sgd")`` of
    ``morphlightning.models``, and ``apply_update_heuristics(model)`` between backward and step.

    Source: derived in docs/conventions.md, "Update heuristics".
    """

    lr: float = 0.3
    other_lr: float = 0.01
    momentum: float = 0.9
    morph_momentum: float = 0.0
    count_normalized: bool = True
    sup_norm: bool = False
    radius_clip: float | None = None
    morph_decay: float = 0.0
    morph_floor: float = -1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.other_lr >= 0:
            raise ValueError(f"other_lr must be >= 0, got {self.other_lr}")
        for name in ("momentum", "morph_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.radius_clip is not None and not 0 <= self.radius_clip < 1:
            raise ValueError(f"radius_clip must lie in [0, 1) or be None, got {self.radius_clip}")
        if not self.morph_decay >= 0:
            raise ValueError(f"morph_decay must be >= 0, got {self.morph_decay}")

    @property
    def needs(self) -> frozenset[str]:
        """Counts, and gaps for the radius."""
        return frozenset({"count", "samples"} | ({"gaps"} if self.radius_clip is not None else set()))

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """One parameter group for each role, named after it.

        Raises:
            ConfigError: Max-plus weights come without statistics, two layers share one, or their heuristics do what
                this optimizer does.
        """
        sites = [site for group in groups for site in group.sites]
        self._check([p for group in groups if group.role == "morph" for p in group.params], sites)
        scale: list[Heuristic] = [SupNorm(len(sites))] if self.sup_norm else []
        if self.radius_clip is not None:
            scale.append(RadiusClipped(self.radius_clip))
        params = [self._max_plus(group) if group.role == "morph" else self._other(group) for group in groups]
        return MorphDescent(params, sites, CountNormalized() if self.count_normalized else None, scale)

    def _max_plus(self, group: Group) -> dict[str, Any]:
        decay = {"weight_decay": self.morph_decay, "floor": self.morph_floor}
        return {"params": group.params, "name": group.role, "lr": self.lr, "momentum": self.morph_momentum, **decay}

    def _other(self, group: Group) -> dict[str, Any]:
        decay = {"weight_decay": self.weight_decay if group.decay else 0.0}
        return {"params": group.params, "name": group.role, "lr": self.other_lr, "momentum": self.momentum, **decay}

    @staticmethod
    def _check(weights: list[nn.Parameter], sites: list[StepStatistics]) -> None:
        if sorted(map(id, weights)) != sorted(id(site.weight) for site in sites):
            raise ConfigError(
                f"morph_sgd: {len(weights)} max-plus weights with {len(sites)} records of statistics; it needs one "
                "each. Take groups from morphlightning.models.parameter_groups, and share no weight between layers"
            )
        doubled = {type(h) for site in sites for h in site.updates} & {RadiusClipped, SupNorm}
        if doubled:
            names = ", ".join(sorted(kind.__name__ for kind in doubled))
            raise ConfigError(
                f"morph_sgd and the heuristics of the model ({names}) do the same to a gradient: "
                "leave them out of heuristic=..., and set radius_clip or sup_norm of morph_sgd"
            )
