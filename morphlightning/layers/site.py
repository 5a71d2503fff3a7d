"""The record of one max-plus weight: what happens to its gradients and what is counted on the way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.pipeline import Pipeline


class Site:
    """Statistics of one weight between two optimizer steps.

    The touch count is the gradient of a ghost leaf of the weight's shape: it accumulates over micro-batches like any
    gradient and survives retracing, but is no parameter, so it is neither saved, reduced, clipped nor decayed.
    """

    def __init__(self, weight: nn.Parameter, pipeline: Pipeline) -> None:
        self.weight = weight
        self.pipeline = pipeline
        self.readers: frozenset[str] = frozenset()
        self.reduced: dict[str, Tensor] | None = None
        self.allocate()

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that somebody reads; nobody reads, nobody pays."""
        return self.pipeline.needs | self.readers

    def allocate(self) -> None:
        """Fresh statistics beside the weight, on its device."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        zeros = torch.zeros(self.weight.shape, dtype=dtype, device=self.weight.device)
        self.ghost = zeros.requires_grad_() if "count" in self.needs else None
        self.samples = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        self.reduced = None
        self._version = self.weight._version

    def read(self, statistics: frozenset[str]) -> None:
        """Record these statistics too, from now on."""
        if not statistics <= self.needs:
            self.readers |= statistics
            self.allocate()

    def record(self, samples: int) -> None:
        """Note a training forward pass over ``samples`` inputs."""
        if "samples" in self.needs:
            self.samples += samples

    def check_applied(self) -> None:
        """Raise ConfigError where a step was taken although update heuristics were never applied."""
        if not self.pipeline.updates or self.ghost is None or torch.compiler.is_compiling():
            return
        if self.ghost.grad is not None and self.weight._version != self._version:
            names = ", ".join(type(h).__name__ for h in self.pipeline.updates)
            raise ConfigError(
                f"the optimizer stepped, but the update heuristics of this layer ({names}) were never applied: call "
                "morphlightning.apply_update_heuristics(model) between backward and step, or give the Trainer "
                "morphlightning.callbacks.MorphUpdates() (morphlightning's own models do it by themselves)"
            )
        self._version = self.weight._version

    def local(self) -> list[Tensor]:
        """This process's statistics, flat: samples, then the count where it is recorded."""
        if self.ghost is None:
            return [self.samples.reshape(1)]
        count = self.ghost if self.ghost.grad is None else self.ghost.grad
        return [self.samples.reshape(1), count.detach().reshape(-1).double()]

    def clear(self) -> None:
        """Start counting anew."""
        if self.ghost is not None:
            self.ghost.grad = None
        self.samples.zero_()
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
        pieces = [site.local() for _, site in recording]
        packed = torch.cat([piece.double() for local in pieces for piece in local])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(packed)
        parts = iter(packed.split([piece.numel() for local in pieces for piece in local]))
        for _, site in recording:
            site.reduced = {"samples": next(parts)[0]}
            if site.ghost is not None:
                site.reduced["count"] = next(parts).view_as(site.weight)
    return {name: site.reduced for name, site in recording if site.reduced is not None}


@torch.no_grad()
def apply_update_heuristics(module: nn.Module) -> None:
    """Hand the gradients of all max-plus weights through their update heuristics.

    To be called after gradients were reduced and unscaled, before clipping and the optimizer's step. morphlightning's
    models do it themselves; for other modules use the callback ``MorphUpdates``, or this function in a plain loop.
    Collective: every process must call it.
    """
    reduce_statistics(module)
    for _, site in sites(module):
        grad = site.weight.grad
        if grad is not None and site.pipeline.updates:
            for heuristic in site.pipeline.updates:
                grad = heuristic.update(site.weight, grad, site.reduced or {})
            site.weight.grad.copy_(grad)  # type: ignore[union-attr]
        if site.needs:
            site.clear()
