"""Checks of initializers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from morphlightning.errors import MorphLightningError
from morphlightning.interfaces import Initializer, SiteSpec
from morphlightning.testing._subject import (
    Subject,
    is_a_plain_value,
    is_documented,
    is_saved_by_name,
    require_equal,
)

_SITES = (
    SiteSpec("dilation", (6, 6)),
    SiteSpec("dilation", (3, 8)),
    SiteSpec("erosion", (8, 3)),
    SiteSpec("dilation", (4, 1, 3, 3), (3, 3)),
    SiteSpec("erosion", (2, 2, 5), (5,)),
    SiteSpec("opening", (2, 1, 2, 3, 2), (2, 3, 2)),
)


def fills_the_asked_shape_in_float32(subject: Subject) -> None:
    """fill() returns a plain float32 tensor of shape spec.shape, dense and windowed, or refuses with our errors."""
    for site, w in _filled(subject.build()):
        assert w.shape == site.shape, f"{site}: shape {tuple(w.shape)}"
        assert w.dtype == torch.float32, f"{site}: {w.dtype}"
        assert not w.requires_grad, f"{site}: requires grad"


def gives_weights_that_can_be_trained(subject: Subject) -> None:
    """No weight is NaN or +inf, and each output has at least one finite one (-inf marks missing weights)."""
    for site, w in _filled(subject.build()):
        assert not w.isnan().any(), f"{site}: NaN"
        assert not (w == math.inf).any(), f"{site}: +inf"
        assert w.flatten(1).isfinite().any(1).all(), f"{site}: an output without any finite weight"


def draws_from_the_generator_alone(subject: Subject) -> None:
    """Equal generators give equal bits, and the global random state is left alone."""
    initializer = subject.build()
    before = torch.get_rng_state()
    for (site, one), (_, other) in zip(_filled(initializer), _filled(initializer), strict=True):
        require_equal(other, one, str(site))
        assert one.data_ptr() != other.data_ptr(), f"{site}: two fills share their memory"
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"


def draws_from_the_global_state_without_a_generator(subject: Subject) -> None:
    """With generator=None, torch.manual_seed decides."""
    initializer = subject.build()
    site = next(_filled(initializer))[0]
    filled = []
    for _ in range(2):
        torch.manual_seed(3)
        filled.append(initializer.fill(site, None))
    require_equal(filled[1], filled[0], str(site))


CHECKS = (
    is_documented,
    is_a_plain_value,
    is_saved_by_name,
    fills_the_asked_shape_in_float32,
    gives_weights_that_can_be_trained,
    draws_from_the_generator_alone,
    draws_from_the_global_state_without_a_generator,
)


def _filled(initializer: Initializer) -> Iterator[tuple[SiteSpec, Tensor]]:
    """Weights of each place that the initializer does not refuse; refusing all of them is a failure."""
    refusals = []
    for site in _SITES:
        try:
            w = initializer.fill(site, torch.Generator().manual_seed(7))
        except MorphLightningError as refusal:
            refusals.append(f"{site}: {refusal}")
        else:
            yield site, w
    assert len(refusals) < len(_SITES), "refused everywhere: " + "; ".join(refusals)
