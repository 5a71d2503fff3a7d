"""Checks of optimizers: torch optimizers with their schedules, and manual-optimization loops."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning.errors import NotSupportedError
from morphlightning.interfaces import Group, Heuristic, Loop, TorchOptimizer
from morphlightning.ops.statistics import gap_histogram
from morphlightning.testing._subject import (
    Skipped,
    Subject,
    is_a_plain_value,
    is_documented,
    is_saved_by_name,
    require_equal,
)

_STEPS = 50


# ------------------------------------------------------------------------------------------- torch optimizers
def is_a_plain_value_unless_a_loop(subject: Subject) -> None:
    """Equal parameters make equal, equally hashed objects; pickling gives an equal one back."""
    _torch_optimizer(subject)
    is_a_plain_value(subject)


def reads_what_it_needs(subject: Subject) -> None:
    """It steps with the statistics of max-plus weights that it names in needs, and no others."""
    component, groups = _torch_optimizer(subject), _groups()
    known = {"count", "gaps", "samples"}
    assert component.needs <= known, f"needs = {set(component.needs)}, known are {sorted(known)}"
    optimizer = _build(component, groups)
    try:
        _step(optimizer, groups)
    except KeyError as error:
        raise AssertionError(f"step() reads {error}, which is not in needs = {set(component.needs)}") from None


def takes_every_parameter_once(subject: Subject) -> None:
    """build() puts each parameter of each group into exactly one param_group."""
    groups = _groups()
    optimizer = _build(_torch_optimizer(subject), groups)
    assert isinstance(optimizer, torch.optim.Optimizer), f"build() gave a {type(optimizer).__name__}"
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = [id(p) for group in groups for p in group.params]
    assert sorted(held) == sorted(wanted), f"{len(held)} parameters held, {len(wanted)} given"


def decreases_a_convex_problem(subject: Subject) -> None:
    """Fifty steps on a sum of squares lower it."""
    groups = _groups()
    optimizer = _build(_torch_optimizer(subject), groups)
    start = _loss(groups).item()
    for _ in range(_STEPS):
        _step(optimizer, groups)
    end = _loss(groups).item()
    assert end < start, f"{start:.6g} before, {end:.6g} after"


def leaves_undecayed_groups_alone(subject: Subject) -> None:
    """Where a group says decay=False, a first step with zero gradients moves nothing (no weight decay)."""
    groups = _groups()
    optimizer = _build(_torch_optimizer(subject), groups)
    before = [p.detach().clone() for group in groups for p in group.params]
    for group in groups:
        for p in group.params:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    after = [(p, group) for group in groups for p in group.params]
    for old, (new, group) in zip(before, after, strict=True):
        if not group.decay:
            require_equal(new.detach(), old, f"parameter of role {group.role!r}")


def keeps_missing_weights_missing(subject: Subject) -> None:
    """A max-plus weight of -inf with gradient zero stays -inf, and spoils no other."""
    weight = nn.Parameter(torch.tensor([[0.5, -math.inf], [1.0, 2.0]]))
    groups = [Group("morph", ["weight"], [weight], decay=False, sites=(_Recorded(weight),))]
    optimizer = _build(_torch_optimizer(subject), groups)
    for _ in range(3):
        weight.grad = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
        optimizer.step()
    assert not weight.isnan().any(), "NaN among the weights"
    assert (weight == -math.inf).tolist() == [[False, True], [False, False]], f"weights became {weight.tolist()}"


def continues_bit_for_bit(subject: Subject) -> None:
    """Ten steps equal five steps, a state_dict saved and loaded into a new optimizer, and five more."""
    component = _torch_optimizer(subject)
    straight = _groups()
    optimizer = _build(component, straight)
    for _ in range(5):
        _step(optimizer, straight)
    broken = copy.deepcopy(straight)
    state = copy.deepcopy(optimizer.state_dict())
    again = _build(component, broken)
    again.load_state_dict(state)
    for _ in range(5):
        _step(optimizer, straight)
        _step(again, broken)
    for one, other in zip(straight, broken, strict=True):
        for p, q in zip(one.params, other.params, strict=True):
            require_equal(q.detach(), p.detach(), f"parameter of role {one.role!r}")


def schedules_finite_rates(subject: Subject) -> None:
    """scheduler() gives None or Lightning's configuration, with finite rates >= 0 throughout the training."""
    component = _torch_optimizer(subject)
    groups = _groups()
    optimizer = _build(component, groups)
    schedule = component.scheduler(optimizer, total_steps=12, total_epochs=3)
    if schedule is None:
        return
    assert isinstance(schedule, dict), f"scheduler() gave a {type(schedule).__name__}, expected a dict or None"
    known = {"scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau"}
    assert "scheduler" in schedule and set(schedule) <= known, f"keys {sorted(schedule)}, known are {sorted(known)}"  # noqa: PT018
    interval = schedule.get("interval", "epoch")
    assert interval in ("epoch", "step"), f"interval {interval!r}"
    for _ in range(12 if interval == "step" else 3):
        _step(optimizer, groups)
        schedule["scheduler"].step(*((1.0,) if "monitor" in schedule else ()))
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates), f"learning rates {rates}"


# ------------------------------------------------------------------------------------------------------- loops
def steps_once_a_batch(subject: Subject) -> None:
    """A loop trains through a Trainer with automatic optimization off; global_step advances once a batch or a pass."""
    model = _model(subject)
    from morphlightning.testing import _training

    trainer = _training.fit(model, epochs=2)
    assert model.automatic_optimization is False, "automatic_optimization is on"
    once = "a pass" if model.optimizer_component.steps_once_a_pass else "a batch"
    due = 2 * (1 if once == "a pass" else _training.BATCHES)
    assert trainer.global_step == due, f"{trainer.global_step} after two epochs, expected {due}: once {once}"


def changes_the_network(subject: Subject) -> None:
    """After an epoch of a loop the parameters are finite, and not those of the start."""
    model = _model(subject)
    from morphlightning.testing import _training

    start = copy.deepcopy(model.state_dict())
    _training.fit(model, epochs=1)
    after = model.state_dict()
    assert any(not torch.equal(after[name], start[name]) for name in start), "no parameter moved"
    assert not any(value.isnan().any() for value in after.values()), "NaN among the parameters"


def resumes_bit_for_bit(subject: Subject) -> None:
    """Two epochs of a loop equal one epoch, a checkpoint, and another one in a new Trainer."""
    straight, first, second = (_model(subject) for _ in range(3))
    from morphlightning.testing import _training

    _training.fit(straight, epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "one.ckpt"
        _training.fit(first, epochs=1, save_to=saved)
        _training.fit(second, epochs=2, resume_from=saved)
    _training.require_equal_parameters(second, straight)


CHECKS = (
    is_documented,
    is_a_plain_value_unless_a_loop,
    is_saved_by_name,
    reads_what_it_needs,
    takes_every_parameter_once,
    decreases_a_convex_problem,
    leaves_undecayed_groups_alone,
    keeps_missing_weights_missing,
    continues_bit_for_bit,
    schedules_finite_rates,
    steps_once_a_batch,
    changes_the_network,
    resumes_bit_for_bit,
)


def _torch_optimizer(subject: Subject) -> TorchOptimizer:
    component = subject.build()
    if not isinstance(component, TorchOptimizer):
        raise Skipped("a loop")
    return component


def _model(subject: Subject) -> Any:
    """A model that trains with the loop: with max-plus layers, or without them where it refuses those."""
    component, probe = subject.build(), subject.build()
    if not isinstance(component, Loop):
        raise Skipped("a torch optimizer")
    from morphlightning.testing import _training

    try:
        _training.classifier(optimizer=probe).configure_optimizers()
        plain = False
    except NotSupportedError:
        plain = True
    return _training.classifier(plain, optimizer=subject.spec if isinstance(subject.spec, str | dict) else component)


class _Recorded:
    """Statistics of a max-plus weight as if each entry of its gradient came from one row of a single sample."""

    updates: tuple[Heuristic, ...] = ()

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight, self._names = weight, {"samples"}

    def read(self, statistics: frozenset[str]) -> None:
        """Give these too."""
        self._names |= statistics

    def of_step(self) -> dict[str, Tensor]:
        """What was asked for."""
        assert self.weight.grad is not None
        touched, first = self.weight.grad != 0, torch.zeros_like(self.weight)
        gaps = gap_histogram(touched, first, first + 0.1)
        known = {"count": touched.double(), "gaps": gaps, "samples": torch.ones((), dtype=torch.float64)}
        return {name: known[name] for name in sorted(self._names)}


def _build(component: TorchOptimizer, groups: list[Group]) -> torch.optim.Optimizer:
    """The optimizer over groups whose statistics it has asked for, as a model does it."""
    for group in groups:
        for site in group.sites:
            site.read(component.needs)
    return component.build(groups)


def _groups() -> list[Group]:
    """Parameters of three roles, far from where the toy problem wants them."""
    draw = torch.Generator().manual_seed(0)

    def group(role: str, decay: bool, *shapes: tuple[int, ...]) -> Group:
        params = [nn.Parameter(2 + torch.rand(shape, generator=draw)) for shape in shapes]
        sites = tuple(_Recorded(p) for p in params) if role == "morph" else ()
        return Group(role, [f"{role}.{i}" for i in range(len(params))], params, decay, sites)

    return [group("morph", False, (4, 5)), group("linear", True, (3, 4), (2, 3)), group("bias", False, (3,))]


def _loss(groups: list[Group]) -> Tensor:
    return torch.stack([(p - 0.5).square().sum() for group in groups for p in group.params]).sum()


def _step(optimizer: torch.optim.Optimizer, groups: list[Group]) -> None:
    optimizer.zero_grad()
    _loss(groups).backward()
    optimizer.step()
