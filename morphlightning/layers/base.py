"""What all layers with one max-plus weight share: missing weights, rules by name, initialization, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import ConfigError, ShapeError
from morphlightning.interfaces import SiteSpec, Spec
from morphlightning.layers.site import Site
from morphlightning.ops.plain import plain
from morphlightning.ops.statistics import NO_GHOSTS, Ghosts
from morphlightning.pipeline import Pipeline


class MorphLayer(nn.Module):
    """A layer with one max-plus weight.

    Missing weights are those where ``mask`` is False: they count as -inf, whatever the parameter holds, so they never
    win, receive no gradient and make no NaN. The parameter itself stays finite.

    Args:
        shape: Shape of the weight, output units first.
        window: How many of the last axes are a window.
        groups: Groups of units and inputs that meet.
        derivative: Derivative rule at ties.
        heuristic: Heuristic or composition of them.
        initializer: Fills the weight; entries of -inf become missing.
        mask: Boolean, False where a weight is missing; broadcast to the weight's shape.
        generator: Source of randomness of the initializer.

    Attributes:
        initialized: False while the initializer waits for data (:func:`morphlightning.layers.initialize`); saved with
            the weights, so that what was trained is never initialized again.
    """

    op: ClassVar[str]
    weight: nn.Parameter
    mask: Tensor
    initialized: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        window: int = 0,
        groups: int = 1,
        *,
        derivative: Spec = "first",
        heuristic: Spec = "plain",
        initializer: Spec = "upper",
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if any(n < 1 for n in shape):
            raise ConfigError(f"{type(self).__name__}: every size must be >= 1, got a weight of shape {shape}")
        self._window, self._groups = window, groups
        self._awaits_data = False
        self._known: tuple[Tensor, int, bool] | None = None
        self.pipeline = Pipeline.parse(derivative, heuristic)
        self.initializer = registry.build("initializers", initializer)
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_buffer("mask", self._checked_mask(mask))
        self.register_buffer("initialized", torch.tensor(True))
        self.reset_parameters(generator)
        self.site = Site(self)

    def _checked_mask(self, mask: Tensor | None) -> Tensor:
        shape = self.weight.shape
        if mask is None:
            return torch.ones(shape, dtype=torch.bool)
        try:
            mask = mask.bool().expand(shape).clone()
        except RuntimeError:
            raise ShapeError(
                f"{type(self).__name__}: mask {tuple(mask.shape)} does not fit weight {tuple(shape)}"
            ) from None
        return mask

    @property
    def spec(self) -> SiteSpec:
        """What an initializer may know."""
        shape = tuple(self.weight.shape)
        return SiteSpec(self.op, shape, shape[len(shape) - self._window :], self._groups)

    @property
    def awaits_data(self) -> bool:
        """Whether the initializer still waits for data."""
        return self._awaits_data

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill the weight by the layer's initializer; one that learns from data gives a start and waits for them."""
        self._start(self.initializer.fill(self.spec, generator))
        self._awaits_data = self.initializer.data != "none"
        if self._awaits_data and (reason := self._why_no_data()):
            raise ConfigError(
                f"{type(self).__name__}: initializer {self.initializer!r} learns from data, and {reason}; choose "
                "'upper', 'identity' or 'flat'"
            )
        self.initialized.fill_(not self._awaits_data)

    def _why_no_data(self) -> str | None:
        """Why the weight cannot be learned from data row by row; None where it can."""
        if self.op in ("dilation", "erosion", "pooling"):
            return None
        article = "an" if self.op[0] in "aeiou" else "a"
        return f"what the weight of {article} {self.op} meets is no single maximum or minimum"

    def start_from_data(self, filled: Tensor) -> None:
        """Take the weights that the initializer learned."""
        self._start(filled)
        self._awaits_data = False
        self.initialized.fill_(True)

    @torch.no_grad()
    def _start(self, filled: Tensor) -> None:
        shape = tuple(self.weight.shape)
        if filled.shape != shape or not (filled < math.inf).all():
            raise ConfigError(
                f"{type(self).__name__}: initializer {self.initializer!r} gave {tuple(filled.shape)}, NaN or +inf; "
                f"expected {shape}, finite, with -inf where a weight is missing"
            )
        self.mask &= (filled > -math.inf).to(self.mask.device)
        self.weight.copy_(filled.masked_fill(filled == -math.inf, 0.0))
        empty = (~self.mask).flatten(1).all(1).nonzero()[:, 0].tolist()
        if empty:
            raise ConfigError(
                f"{type(self).__name__}: output {empty[0]} has no finite weight ({len(empty)} such outputs of "
                f"{shape[0]}); it would be -inf for every input. Leave at least one weight of each output in the mask"
            )

    @property
    def sign(self) -> int:
        """-1 for erosions, which are dilations of -x; else 1."""
        return -1 if self.op == "erosion" else 1

    def candidates(self, x: Tensor) -> Tensor:
        """What competes where x (samples, *event) comes in: SiteBatch.x, rows of one sample after another."""
        return self.sign * x.unsqueeze(1)

    def wanted(self, y: Tensor) -> Tensor:
        """Outputs (samples, *event) as rows of groups and units: SiteBatch.y."""
        return self.sign * y.unsqueeze(1)

    @property
    def effective_weight(self) -> Tensor:
        """The weight with -inf where it is missing.

        Raises:
            ConfigError: It is asked for in training, and the initializer still waits for data.
        """
        if self._awaits_data and self.training and torch.is_grad_enabled():
            raise ConfigError(
                f"{type(self).__name__}: initializer {self.initializer!r} waits for data; call "
                "morphlightning.layers.initialize(model, loader) or model.initialize(datamodule) before training "
                "(the fit of morphlightning's own models does), or choose 'upper', which needs none"
            )
        return self.weight if self._complete() else torch.where(self.mask, self.weight, -math.inf)

    def _complete(self) -> bool:
        """Whether nothing is missing, which saves two passes over a large weight; asked once a state of the mask."""
        mask = self.mask
        if not plain(mask, self.weight) or mask.is_inference():
            return False
        if self._known is None or self._known[0] is not mask or self._known[1] != mask._version:
            self._known = (mask, mask._version, bool(mask.all()))
        return self._known[2]

    def begin(self, samples: int) -> tuple[Tensor, Ghosts]:
        """Begin a pass over ``samples`` inputs.

        Returns:
            The effective weight, and the leaves whose gradients become statistics, where somebody reads them.
        """
        weight = self.effective_weight
        if not (self.training and torch.is_grad_enabled()):
            return weight, NO_GHOSTS
        return self.site.record(weight, samples), self.site.ghosts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.site.allocate()  # a bare attribute does not move with the module
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}initialized", torch.tensor(True))  # an older one holds trained weights
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._awaits_data = not bool(self.initialized)
        self.site.clear()

    def extra_repr(self) -> str:
        """Shape and rules."""
        missing = int((~self.mask).sum())
        rules = f"derivative={self.pipeline.policy.rule!r}"
        return f"weight={tuple(self.weight.shape)}, {rules}" + (f", missing={missing}" if missing else "")
