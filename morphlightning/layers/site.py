"""The record of one max-plus weight: what happens to its gradients and what is counted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Heuristic
from morphlightning.ops.statistics import GAP_BINS, Ghosts
from morphlightning.pipeline import Pipeline

if TYPE_CHECKING:
    from morphlightning.layers.base import MorphLayer


class _Tally(torch.autograd.Function):
    """The identity; its backward pass adds ``samples`` to the gradient of a ghost leaf."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, ghost: Tensor, samples: int) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, ghost, ctx.samples = inputs
        ctx.like = ghost.dtype, ghost.device

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        dtype, device = ctx.like
        return grad, torch.full((), ctx.samples, dtype=dtype, device=device), None


class Site:
    """Statistics of one weight between two optimizer steps.

    They are gradients of ghost leaves: of ``tally`` (samples) and of ``ghosts`` (touch counts and gaps). So they
    accumulate over micro-batches like any gradient, count what was differentiated and nothing else, and survive
    retracing and recomputation; but ghosts are no parameters, so they are neither saved, reduced, clipped nor decayed.
    """

    def __init__(self, layer: MorphLayer) -> None:
        self._layer = layer
        self.readers: Counter[str] = Counter()
        self.allocate()

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight."""
        return self._layer.weight

    @property
    def mask(self) -> Tensor:
        """False where the weight is missing."""
        return self._layer.mask

    @property
    def pipeline(self) -> Pipeline:
        """The layer's rules."""
        return self._layer.pipeline

    @property
    def updates(self) -> tuple[Heuristic, ...]:
        """The layer's update heuristics."""
        return self.pipeline.updates

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that somebody reads; nobody reads, nobody pays."""
        return self.pipeline.needs.union(self.readers)

    def allocate(self) -> None:
        """Fresh statistics beside the weight, on its device."""
        weight = self.weight

        def leaf(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=weight.device, requires_grad=True)

        self.tally = leaf(())
        self.ghosts = Ghosts(
            leaf(weight.shape, torch.promote_types(weight.dtype, torch.float32)) if "count" in self.needs else None,
            leaf((GAP_BINS,)) if "gaps" in self.needs else None,
        )
        self.reduced: dict[str, Tensor] | None = None
        self.last: dict[str, Tensor] | None = None
        self._version = weight._version

    def read(self, statistics: frozenset[str]) -> None:
        """Record these statistics too, until as many calls of :meth:`release`."""
        self._set_readers(self.readers + Counter(statistics))

    def release(self, statistics: frozenset[str]) -> None:
        """Undo one :meth:`read`."""
        self._set_readers(self.readers - Counter(statistics))

    def _set_readers(self, readers: Counter[str]) -> None:
        before, self.readers = self.needs, readers
        if self.needs != before:
            self.allocate()

    def record(self, weight: Tensor, samples: int) -> Tensor:
        """``weight``, such that a backward pass through it counts ``samples`` inputs."""
        if not (self.needs or self.updates):
            return weight
        self._check_applied()
        counted: Tensor = _Tally.apply(weight, self.tally, samples)  # type: ignore[no-untyped-call]
        return counted

    def _check_applied(self) -> None:
        """Raise ConfigError where a step was taken although update heuristics were never applied."""
        if not self.updates or torch.compiler.is_compiling():
            return
        if self.tally.grad is not None and self.weight._version != self._version:
            names = ", ".join(type(h).__name__ for h in self.updates)
            raise ConfigError(
                f"the optimizer stepped, but the update heuristics of this layer ({names}) were never applied: call "
                "morphlightning.apply_update_heuristics(model) between backward and step, or give the Trainer "
                "morphlightning.callbacks.MorphUpdates() (morphlightning's own models do it by themselves)"
            )
        self._version = self.weight._version

    def of_step(self) -> Mapping[str, Tensor]:
        """Statistics of the step that is about to be taken, for an optimizer that reads them.

        Raises:
            ConfigError: They were not summed up since the last backward pass.
        """
        if self.last is None or self.tally.grad is not None:
            raise ConfigError(
                "the optimizer reads statistics of max-plus layers, and they were not summed up for this step: call "
                "morphlightning.apply_update_heuristics(model, optimizer) between backward and step, or give the "
                "Trainer morphlightning.callbacks.MorphUpdates() (morphlightning's own models do it by themselves)"
            )
        return self.last

    def leaves(self) -> dict[str, Tensor]:
        """The leaves by the statistics that their gradients are."""
        leaves = {"samples": self.tally, "count": self.ghosts.touches, "gaps": self.ghosts.gaps}
        return {name: leaf for name, leaf in leaves.items() if leaf is not None}

    def local(self) -> list[Tensor]:
        """This process's statistics, flat."""
        leaves = self.leaves().values()
        return [(leaf if leaf.grad is None else leaf.grad).detach().flatten().double() for leaf in leaves]

    def clear(self) -> None:
        """Start counting anew."""
        for leaf in self.leaves().values():
            leaf.grad = None
        self.reduced = None
        self._version = self.weight._version


def sites(module: nn.Module) -> Iterator[tuple[str, Site]]:
    """Names and sites of all max-plus weights below ``module``; a shared layer is listed once."""
    for name, child in module.named_modules():
        site = getattr(child, "site", None)
        if isinstance(site, Site):
            yield name, site


def reduce_statistics(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Statistics of all sites that record any, summed over processes in one collective; by layer name.

    Every process must call it equally often, also where a batch was empty. The result is kept until the update
    heuristics are applied, so that a diagnostic and a heuristic share one reduction.
    """
    recording = [(name, site) for name, site in sites(module) if site.needs]
    if any(site.reduced is None for _, site in recording):
        pieces = [piece for _, site in recording for piece in site.local()]
        packed = torch.cat(pieces)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(packed)
        parts = iter(packed.split([piece.numel() for piece in pieces]))
        for _, site in recording:
            site.reduced = {name: next(parts).view(leaf.shape) for name, leaf in site.leaves().items()}
    return {name: site.reduced for name, site in recording if site.reduced is not None}


@torch.no_grad()
def apply_update_heuristics(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Hand the gradients of all max-plus weights through their update heuristics.

    To be called after gradients were reduced and unscaled, before clipping and the optimizer's step. morphlightning's
    models do it themselves; for other modules use the callback ``MorphUpdates``, or this function in a plain loop.
    Collective: every process must call it. The statistics of the step stay readable as ``site.last`` until the next
    call.

    Args:
        module: What holds the layers.
        optimizer: The optimizer that is about to step; it tells heuristics that ask for it (``"lr"``) the rate.
    """
    reduce_statistics(module)
    groups = [] if optimizer is None else optimizer.param_groups
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    for _, site in sites(module):
        weight, statistics = site.weight, site.reduced or {}
        if weight.grad is not None and site.updates:
            if id(weight) in rates:
                rate = torch.as_tensor(rates[id(weight)], dtype=torch.float64, device=weight.device)
                statistics = statistics | {"lr": rate}
            grad = weight.grad
            for heuristic in site.updates:
                grad = heuristic.update(weight, grad, statistics)
            weight.grad.copy_(grad)
        site.last = site.reduced
        site.clear()
