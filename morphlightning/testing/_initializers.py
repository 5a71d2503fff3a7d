"""Checks of initializers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from morphlightning.errors import MorphLightningError
from morphlightning.interfaces import Initializer, SiteSpec
from morphlightning.layers.initialization import Rows
from morphlightning.testing._subject import (
    Skipped,
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

_LEARNING_SITES = (
    SiteSpec("dilation", (4, 6)),
    SiteSpec("erosion", (6, 2, 3), (3,), groups=2),
    SiteSpec("pooling", (3, 1, 2, 2), (2, 2), groups=3),
)
_MERGED: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": lambda parts: torch.stack(tuple(parts)).sum(0),
    "min": lambda parts: torch.stack(tuple(parts)).amin(0),
    "max": lambda parts: torch.stack(tuple(parts)).amax(0),
    "gather": lambda parts: torch.cat(tuple(parts)),
}


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


def learns_weights_that_can_be_trained(subject: Subject) -> None:
    """finish() gives spec.shape without NaN or +inf, each output a finite weight, also where weights are missing."""
    initializer = _learner(subject)
    for site in _LEARNING_SITES:
        w = _learn(initializer, site, [[_rows(site)]])
        assert w.shape == site.shape, f"{site}: shape {tuple(w.shape)}"
        assert w.is_floating_point(), f"{site}: {w.dtype}"
        assert (w < math.inf).all(), f"{site}: NaN or +inf"
        assert w.flatten(1).isfinite().any(1).all(), f"{site}: an output without any finite weight"


def learns_the_same_however_rows_are_shared_out(subject: Subject) -> None:
    """Batches and processes, one of them without data, make no difference beyond rounding, nor does the order."""
    initializer = _learner(subject)
    for site in _LEARNING_SITES:
        rows = _rows(site)
        order = torch.randperm(len(rows.x))
        shares = [[_part(rows, i) for i in order[:20].split(8)], [_part(rows, i) for i in order[20:].split(9)], []]
        require_equal(_learn(initializer, site, shares), _learn(initializer, site, [[rows]]), str(site), 1e-6)


def declares_what_update_changes(subject: Subject) -> None:
    """update() leaves alone what reduce does not name, and begin() gives all that it names."""
    initializer = _learner(subject)
    site = _LEARNING_SITES[0]
    state = initializer.begin(site, _start(site), {})
    assert set(initializer.reduce) <= set(state), f"reduce names {sorted(initializer.reduce)}, state {sorted(state)}"
    before = {name: value.clone() for name, value in state.items()}
    initializer.update(state, _rows(site))
    assert set(state) == set(before), f"entries {sorted(before)} became {sorted(state)}"
    for name in set(state) - set(initializer.reduce):
        require_equal(state[name], before[name], f"entry {name!r}, which reduce does not name")


def learns_from_rows_and_generator_alone(subject: Subject) -> None:
    """The same rows and generator give equal bits; rows and the global random state stay as they are."""
    initializer = _learner(subject)
    before = torch.get_rng_state()
    for site in _LEARNING_SITES:
        rows, untouched = _rows(site), _rows(site)
        first = _learn(initializer, site, [[rows]])
        require_equal(rows.x, untouched.x, f"{site}: x after update()")
        require_equal(rows.y, untouched.y, f"{site}: y after update()")
        require_equal(_learn(initializer, site, [[rows]]), first, str(site))
    assert torch.equal(torch.get_rng_state(), before), "the global random state moved"


CHECKS = (
    is_documented,
    is_a_plain_value,
    is_saved_by_name,
    fills_the_asked_shape_in_float32,
    gives_weights_that_can_be_trained,
    draws_from_the_generator_alone,
    draws_from_the_global_state_without_a_generator,
    learns_weights_that_can_be_trained,
    learns_the_same_however_rows_are_shared_out,
    declares_what_update_changes,
    learns_from_rows_and_generator_alone,
)


def _learner(subject: Subject) -> Initializer:
    initializer: Initializer = subject.build()
    if initializer.data == "none":
        raise Skipped("does not learn from data")
    return initializer


def _rows(site: SiteSpec) -> Rows:
    """Rows with values that repeat, and where there is a window with inputs that lie outside."""
    generator = torch.Generator().manual_seed(5)
    units, candidates = site.shape[0] // site.groups, math.prod(site.shape[1:])
    x = torch.randint(0, 9, (48, site.groups, candidates), generator=generator) / 8
    if site.window:
        x[::4, :, 0] = -math.inf
    y = torch.randint(0, 9, (48, site.groups, units), generator=generator) / 8
    return Rows(x, y, torch.randint(0, 2**62, (48,), generator=generator))


def _part(rows: Rows, index: Tensor) -> Rows:
    return Rows(rows.x[index], rows.y[index], rows.draw[index])


def _start(site: SiteSpec) -> Tensor:
    w = torch.rand(site.shape, generator=torch.Generator().manual_seed(1))
    w[0].view(-1)[-1] = -math.inf
    return w


def _learn(initializer: Initializer, site: SiteSpec, shares: Sequence[Sequence[Rows]]) -> Tensor:
    """Weights from what each process has to read, by the reductions that the initializer declares."""
    w = _start(site)
    merged: Mapping[str, Tensor] = {}
    for _ in range(initializer.passes):
        states = [initializer.begin(site, w, merged) for _ in shares]
        for state, share in zip(states, shares, strict=True):
            for rows in share:
                initializer.update(state, rows)
        merged = {name: _together(initializer.reduce.get(name), [s[name] for s in states]) for name in states[0]}
    return initializer.finish(site, w, merged, torch.Generator().manual_seed(7))


def _together(how: str | None, parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if how is None else _MERGED[how](parts)


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
