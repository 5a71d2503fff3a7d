from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from morphlightning_plugins.optimizers.signum import SignDescent
from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Group


def groups() -> list[Group]:
    torch.manual_seed(0)
    morph, linear = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 2))
    return [Group("morph", ["m"], [morph], decay=False), Group("linear", ["w"], [linear], decay=True)]


def rates(spec: dict[str, Any], steps: int) -> list[float]:
    """The rate of the linear weights at each of the steps."""
    component = registry.build("optimizers", spec)
    optimizer = component.build(groups())
    schedule = component.scheduler(optimizer, steps, -1)["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_falls_to_zero() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(10)]
    assert rates({"name": "sgd", "lr": 1.0, "schedule": "cosine"}, 10) == pytest.approx(expected)


def test_warmup_rises_linearly_then_falls() -> None:
    seen = rates({"name": "adam", "lr": 1.0, "schedule": "cosine", "warmup": 0.3}, 10)
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[3:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 7)) for k in range(7)])


def test_warmup_of_a_constant_rate() -> None:
    assert rates({"name": "sgd", "lr": 1.0, "warmup": 0.5}, 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(("steps", "lasts"), [(9, 3), (10, 4)])
def test_step_falls_twice(steps: int, lasts: int) -> None:
    expected = [0.1 ** (k // lasts) for k in range(steps)]
    assert rates({"name": "sgd", "lr": 1.0, "schedule": "step"}, steps) == pytest.approx(expected)


def test_one_cycle_peaks_at_the_rate_and_leaves_the_momentum_alone() -> None:
    seen = rates({"name": "sgd", "lr": 1.0, "schedule": "one_cycle"}, 20)
    assert max(seen) == pytest.approx(1.0)
    assert seen[0] == pytest.approx(1 / 25)
    assert seen[-1] < 1e-3
    component = registry.build("optimizers", {"name": "adam", "schedule": "one_cycle", "betas": [0.5, 0.6]})
    optimizer = component.build(groups())
    component.scheduler(optimizer, 20, -1)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "step"])
def test_schedules_of_very_short_runs(schedule: str, steps: int) -> None:
    seen = rates({"name": "adam", "lr": 1.0, "schedule": schedule}, steps)
    assert all(0 <= rate <= 1 for rate in seen)


def test_a_constant_rate_has_no_schedule() -> None:
    component = registry.build("optimizers", "adam")
    assert component.scheduler(component.build(groups()), 10, 1) is None


@pytest.mark.parametrize("spec", [{"schedule": "cosine"}, {"schedule": "one_cycle"}, {"warmup": 0.1}])
def test_a_schedule_needs_the_length_of_the_run(spec: dict[str, Any]) -> None:
    component = registry.build("optimizers", {"name": "adam", **spec})
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        component.scheduler(component.build(groups()), -1, -1)


def test_rates_are_those_of_the_roles_they_name() -> None:
    optimizer = registry.build("optimizers", {"name": "sgd", "lr": 0.5, "rates": {"morph": 2.0}}).build(groups())
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"morph": 2.0, "linear": 0.5}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_decay_pulls_linear_weights_only(name: str) -> None:
    given = groups()
    before = [group.params[0].detach().clone() for group in given]
    optimizer = registry.build("optimizers", {"name": name, "weight_decay": 0.1, "lr": 0.1}).build(given)
    for group in given:
        group.params[0].grad = torch.zeros_like(group.params[0])
    optimizer.step()
    assert torch.equal(given[0].params[0], before[0])
    assert (given[1].params[0].abs() < before[1].abs()).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "adam", "lr": 0}, "lr must be > 0"),
        ({"name": "adam", "lr": float("nan")}, "lr must be > 0"),
        ({"name": "sgd", "weight_decay": -1}, "weight_decay must be >= 0"),
        ({"name": "sgd", "rates": {"morph": -1}}, "rates must be >= 0"),
        ({"name": "sgd", "rates": {"mrph": 1}}, "no role mrph; there are morph"),
        ({"name": "adamw", "schedule": "linear"}, "schedule must be one of constant, cosine, one_cycle, step"),
        ({"name": "adamw", "schedule": "cosine", "warmup": 1}, "warmup must lie in"),
        ({"name": "adamw", "schedule": "step", "warmup": 0.1}, "takes no warmup"),
        ({"name": "signum", "lr": -1}, "lr must be > 0"),
        ({"name": "signum", "momentum": 1}, "momentum must lie in"),
    ],
)
def test_bad_parameters(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("optimizers", spec)


def test_sign_descent_follows_the_sign_of_the_averaged_gradient() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = SignDescent([p], lr=0.1, momentum=0.5)
    for gradient in ([1.0, -1.0, 0.0], [-0.5, -1.0, 2.0]):
        p.grad = torch.tensor(gradient)
        optimizer.step()
    # averages: (0.5, -0.5, 0), then (0, -0.75, 1)
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.2, -0.1]))


def test_sign_descent_saves_its_average_and_skips_what_has_no_gradient() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    optimizer = SignDescent([a, b], lr=0.1, momentum=0.9)
    a.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    assert torch.equal(b.detach(), torch.ones(2))
    state = optimizer.state_dict()["state"]
    torch.testing.assert_close(state[0]["mean"], torch.tensor([0.1, 0.2]))
    assert 1 not in state
