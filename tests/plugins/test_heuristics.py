"""Heuristics: their stages, how they compose, and what they do to training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import morphlightning.functional as mf
from morphlightning import apply_update_heuristics, layers, registry
from morphlightning.errors import ConfigError, PluginNotFoundError
from morphlightning.functional.dense import max_plus
from morphlightning.interfaces import Heuristic, SiteView, ToWeights
from morphlightning.pipeline import Pipeline


@dataclass(frozen=True)
class Together(Heuristic):
    """All inputs move by the same amount: sign of the summed message, with the mass of the rule's own."""

    stage: ClassVar[str] = "message"

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """The sign of the summed message everywhere."""
        return gy.sum(1, keepdim=True).sign() * default.abs().mean(1, keepdim=True).expand_as(default)


@dataclass(frozen=True)
class Times(Heuristic):
    """Weights receive ``factor`` times their share."""

    factor: float = 2.0
    stage: ClassVar[str] = "route"

    def route(self, view: SiteView, gy: Tensor, count: bool, default: Callable[[Tensor], ToWeights]) -> ToWeights:
        """The share, scaled."""
        gw, touched = default(gy)
        return self.factor * gw, touched


@dataclass(frozen=True)
class Last(Heuristic):
    """Wants to stand behind count_normalized."""

    stage: ClassVar[str] = "update"
    after: ClassVar[frozenset[str]] = frozenset({"count_normalized"})

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """The gradient as it is."""
        return grad


@pytest.fixture(autouse=True)
def local_heuristics():
    with (
        registry.registered("heuristics", "together", Together),
        registry.registered("heuristics", "times", Times),
        registry.registered("heuristics", "last", Last),
    ):
        yield


@pytest.mark.parametrize(
    "make", [lambda h: layers.Dilation(5, 4, heuristic=h), lambda h: layers.Dilation2d(2, 3, heuristic=h)]
)
def test_a_message_heuristic_acts_inside_backward(make) -> None:
    layer, plain = make("together"), make("plain")
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5) if layer.weight.ndim == 2 else torch.randn(3, 2, 4, 5)
    grads = []
    for module in (layer, plain):
        a = x.clone().requires_grad_()
        y = module(a)
        y.backward(torch.linspace(-1, 2, y.numel()).view_as(y))
        grads.append((a.grad, module.weight.grad))
    gy = torch.linspace(-1, 2, y.numel()).view(3, -1)
    mass = grads[1][0].flatten(1).abs().mean(1, keepdim=True)
    torch.testing.assert_close(grads[0][0].flatten(1), (gy.sum(1, keepdim=True).sign() * mass).expand(3, x[0].numel()))
    assert torch.equal(grads[0][1], grads[1][1])  # the weights see nothing of it


@pytest.mark.parametrize("derivative", ["first", "uniform", "bouligand"])
def test_a_route_heuristic_changes_what_weights_receive(derivative: str) -> None:
    x, gy = torch.randint(0, 2, (6, 5)).double(), torch.randint(-2, 3, (6, 4)).double()

    def run(heuristic) -> tuple[Tensor, Tensor]:
        layer = layers.Dilation(5, 4, derivative=derivative, heuristic=heuristic, initializer="zeros").double()
        a = x.clone().requires_grad_()
        layer(a).backward(gy)
        return a.grad, layer.weight.grad

    gx, gw = run("plain")
    routed_x, routed_w = run("lower_only")
    torch.testing.assert_close(routed_x, gx)
    down = layers.Dilation(5, 4, derivative=derivative, initializer="zeros").double()
    down(x).backward(gy.clamp_min(0))
    torch.testing.assert_close(routed_w, down.weight.grad)
    torch.testing.assert_close(run("times")[1], 2 * gw)
    torch.testing.assert_close(run([Times(3.0), "lower_only", "times"])[1], 6 * routed_w)


def test_stages_compose() -> None:
    layer = layers.Dilation(5, 4, derivative="bouligand", heuristic="together+count_normalized+times")
    pipeline = layer.pipeline
    assert isinstance(pipeline.policy.message, Together)
    assert pipeline.policy.routes == (Times(),)
    assert [type(u).__name__ for u in pipeline.updates] == ["CountNormalized"]
    assert pipeline.needs == {"count", "samples"}
    x = torch.randn(8, 5, requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad == x.grad[:, :1]).all()
    apply_update_heuristics(layer)
    torch.testing.assert_close(layer.weight.grad, 2 * 8 * (layer.weight.grad != 0).float())


def test_compiled_stages() -> None:
    layer = layers.Dilation(5, 4, heuristic="together+times")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, gy = torch.randn(3, 5), torch.randn(3, 4)
    seen = []
    for module in (layer, compiled):
        a = x.clone().requires_grad_()
        layer.zero_grad()
        module(a).backward(gy)
        seen.append((a.grad, layer.weight.grad.clone()))
    for a, b in zip(*seen):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "spec", ["plain", " plain ", ["plain"], {"name": "plain"}, "morphlightning:plain", "plain+plain"]
)
def test_plain_is_nothing(spec) -> None:
    pipeline = Pipeline.parse("first", spec)
    assert pipeline.policy.winner_only
    assert not pipeline.needs
    assert not pipeline.updates


def test_names_mappings_and_objects_mean_the_same() -> None:
    by_name = Pipeline.parse("first", "times+count_normalized")
    for spec in (["times", "count_normalized"], [Times(), {"name": "count_normalized"}], "count_normalized + times"):
        assert Pipeline.parse("first", spec) == by_name
    assert Pipeline.parse("first", {"name": "times", "factor": 5.0}).policy.routes == (Times(5.0),)


def test_refused_compositions() -> None:
    with pytest.raises(ConfigError, match=r"together and together are both message heuristics .* keep one"):
        Pipeline.parse("first", "together+together")
    with pytest.raises(ConfigError, match="last must come after count_normalized; swap them"):
        Pipeline.parse("first", "last+count_normalized")
    assert Pipeline.parse("first", "count_normalized+last").updates
    assert Pipeline.parse("first", "last").updates
    for wrong in ("plain+", "", "plain++plain", "+"):
        with pytest.raises((ConfigError, PluginNotFoundError)):
            Pipeline.parse("first", wrong)
    with pytest.raises(PluginNotFoundError, match="count_normalised"):
        layers.Dilation(3, 2, heuristic="count_normalised")


def test_names_mean_what_is_registered_now() -> None:
    """A name that stands for another class later is not answered from memory."""

    class Other(Together):
        """Another one."""

    with registry.registered("heuristics", "changing", Together):
        assert type(Pipeline.parse("first", "changing").policy.message) is Together
    with registry.registered("heuristics", "changing", Other):
        assert type(Pipeline.parse("first", "changing").policy.message) is Other


def test_shift_moves_every_output_alike() -> None:
    """A shift of all inputs shifts all outputs, whatever the ties: a message that keeps its promise for any step."""
    x, w = torch.randint(0, 2, (4, 5)).double().requires_grad_(), torch.randint(0, 2, (3, 5)).double()
    policy = Pipeline.parse("uniform", "shift").policy
    max_plus(x, w, policy).sum().backward()
    step = x - 0.7 * x.grad
    torch.testing.assert_close(mf.dilation(step, w), mf.dilation(x, w) - 0.7 * x.grad[:, :1])


def train(derivative, heuristic: str, rate: float, seed: int) -> float:
    """Mean squared error over the variance of the targets, of two layers that learn from two."""
    generator = torch.Generator().manual_seed(100 + seed)

    def network(**rules) -> nn.Sequential:
        rules["generator"] = generator
        return nn.Sequential(layers.Dilation(16, 16, **rules), layers.Erosion(16, 8, **rules))

    teacher = network(initializer={"name": "uniform", "low": -0.6, "high": 0.0})
    student = network(derivative=derivative, heuristic=heuristic)
    x = torch.rand(2000, 16, generator=generator)
    with torch.no_grad():
        y = teacher(x)
    optimizer = torch.optim.SGD(student.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        for part in torch.randperm(2000, generator=generator).split(50):
            optimizer.zero_grad()
            (((student(x[part]) - y[part]) ** 2).sum(1).mean() / 2).backward()
            apply_update_heuristics(student)
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(((student(x) - y) ** 2).mean() / y.var())


@pytest.mark.slow
def test_the_order_of_rules_and_heuristics_on_a_teacher_student_task() -> None:
    near = {"name": "bouligand", "eps": 0.02}
    cases = [(near, "count_normalized", 0.3), ("first", "count_normalized", 0.3), ("first", "plain", 1.0)]
    errors = [sum(train(*case, seed=seed) for seed in range(3)) / 3 for case in cases]
    assert all(better < worse for better, worse in itertools.pairwise(errors)), errors
    assert errors[0] < 0.05
