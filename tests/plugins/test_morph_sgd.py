"""morph_sgd: its steps by hand, its options, and what count normalization is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import apply_update_heuristics, layers, registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Group
from morphlightning.models import build_optimizer, parameter_groups

X = torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, -2.0], [-3.0, 0.0, -2.0]]).double()  # winners 0, 0, 1; never 2


def single(**options: Any) -> layers.Dilation:
    return layers.Dilation(3, 1, initializer="zeros", **options).double()


def step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, messages: Tensor) -> None:
    optimizer.zero_grad()
    module(x).backward(messages)
    apply_update_heuristics(module)
    optimizer.step()


def messages(*values: float) -> Tensor:
    return torch.tensor(values).double()[:, None] / len(values)


@pytest.mark.parametrize(("normalized", "expected"), [(True, [-0.75, -2.0, 0.0]), (False, [-0.5, -2 / 3, 0.0])])
def test_a_step_is_the_mean_over_the_rows_that_touched(normalized: bool, expected: list[float]) -> None:
    layer = single()
    optimizer = build_optimizer(layer, {"name": "morph_sgd", "lr": 0.5, "count_normalized": normalized})
    step(layer, optimizer, X, messages(1.0, 2.0, 4.0))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor(expected).double())


def test_counts_divide_once_where_the_layer_carries_the_heuristic() -> None:
    layer = single(heuristic="count_normalized")
    step(layer, build_optimizer(layer, {"name": "morph_sgd", "lr": 0.5}), X, messages(1.0, 2.0, 4.0))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([-0.75, -2.0, 0.0]).double())


def test_a_momentum_waits_for_the_next_touch() -> None:
    layer = single()
    optimizer = build_optimizer(layer, {"name": "morph_sgd", "lr": 0.5, "morph_momentum": 0.5})
    step(layer, optimizer, X, messages(1.0, 1.0, 1.0))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([-0.5, -0.5, 0.0]).double())
    step(layer, optimizer, X[:2], messages(1.0, 1.0))  # the winner is input 0; 1 and 2 are untouched
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([-1.25, -0.5, 0.0]).double())
    buffer = optimizer.state[layer.weight]["momentum_buffer"]
    torch.testing.assert_close(buffer[0], torch.tensor([1.5, 1.0, 0.0]).double())
    step(layer, optimizer, X[2:], messages(1.0))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([-1.25, -1.25, 0.0]).double())


def test_what_nothing_touched_is_not_moved_by_other_gradients() -> None:
    layer = single()
    optimizer = build_optimizer(layer, "morph_sgd")
    (layer(X).mean() + layer.weight.sum()).backward()
    apply_update_heuristics(layer)
    optimizer.step()
    assert (layer.weight.detach()[0] != 0).tolist() == [True, True, False]


def test_decay_lowers_to_the_floor_and_raises_nothing() -> None:
    layer = single()
    with torch.no_grad():
        layer.weight[0] = torch.tensor([0.0, -1.0, -9.0])
    optimizer = build_optimizer(layer, {"name": "morph_sgd", "lr": 0.5, "morph_decay": 0.5, "morph_floor": -4.0})
    step(layer, optimizer, X, messages(0.0, 0.0, 0.0))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([-1.0, -1.75, -9.0]).double())


def test_a_radius_holds_the_step_with_its_momentum() -> None:
    layer, generator = layers.Dilation(12, 8).double(), torch.Generator().manual_seed(0)
    spec = {"name": "morph_sgd", "lr": 0.9, "morph_momentum": 0.9, "radius_clip": 0.2}
    optimizer = build_optimizer(layer, spec)
    clipped = 0
    for _ in range(5):
        x, before = torch.rand(30, 12, generator=generator).double(), layer.weight.detach().clone()
        top = (x[:, None] + before).topk(2).values
        step(layer, optimizer, x, torch.randn(30, 8, generator=generator).double() / 30)
        radius = (top[..., 0] - top[..., 1]).flatten().sort().values[int(0.2 * 240)] / 2
        moved = (layer.weight.detach() - before).abs().max()
        assert moved <= radius * (1 + 1e-12)
        clipped += int(moved >= 7 / 8 * radius)
    assert clipped == 5


def test_sup_norm_shares_the_rate_among_layers() -> None:
    network = nn.Sequential(layers.Dilation(6, 5), layers.Erosion(5, 4)).double()
    optimizer = build_optimizer(network, {"name": "morph_sgd", "lr": 0.2, "sup_norm": True})
    before = [p.detach().clone() for p in network.parameters()]
    step(network, optimizer, torch.rand(9, 6).double(), torch.randn(9, 4).double())
    for old, new in zip(before, network.parameters(), strict=True):
        assert (new - old).abs().max().item() == pytest.approx(0.1)


def test_other_parameters_move_as_under_sgd() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, {"name": "morph_sgd", "other_lr": 0.1, "momentum": 0.8, "weight_decay": 0.2})
    decays = [{"params": [theirs.weight], "weight_decay": 0.2}, {"params": [theirs.bias]}]
    reference = torch.optim.SGD(decays, lr=0.1, momentum=0.8)
    for x in torch.randn(4, 6, 4):
        for module, descent in ((ours, optimizer), (theirs, reference)):
            descent.zero_grad()
            module(x).square().mean().backward()
            descent.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_only_what_is_read_is_recorded() -> None:
    for spec, recorded in (
        ("sgd", set()),
        ("morph_sgd", {"count", "samples"}),
        ({"name": "morph_sgd", "radius_clip": 0.1}, {"count", "gaps", "samples"}),
    ):
        layer = single()
        build_optimizer(layer, spec)
        layer(X).sum().backward()
        assert set(layers.reduce_statistics(layer).get("", {})) == recorded


def test_a_step_without_reduced_statistics_is_refused() -> None:
    layer = single()
    optimizer = build_optimizer(layer, "morph_sgd")
    for _ in range(2):
        optimizer.zero_grad()
        layer(X).sum().backward()
        with pytest.raises(ConfigError, match=r"apply_update_heuristics\(model, optimizer\) between backward and step"):
            optimizer.step()
        apply_update_heuristics(layer)
        optimizer.step()


@pytest.mark.parametrize("name", ["sup_norm", "radius_clipped"])
def test_heuristics_that_do_the_same_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"morph_sgd and the heuristics of the model .* leave them out of heuristic"):
        build_optimizer(single(heuristic=name), "morph_sgd")


def test_weights_without_statistics_are_refused() -> None:
    layer = single()
    component = registry.build("optimizers", "morph_sgd")
    with pytest.raises(ConfigError, match="1 max-plus weights with 0 records of statistics; it needs one each"):
        component.build([Group("morph", ["weight"], [layer.weight], decay=False)])
    first, second = layers.Dilation(4, 4), layers.Dilation(4, 4)
    second.weight = first.weight
    with pytest.raises(ConfigError, match="1 max-plus weights with 2 records"):
        component.build(parameter_groups(nn.Sequential(first, second)))


def test_a_loop_is_no_optimizer_of_a_plain_module() -> None:
    with pytest.raises(ConfigError, match="optimizer 'signum' is a loop, which owns the training step"):
        build_optimizer(single(), "signum")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lr": 0}, "lr must be > 0"),
        ({"other_lr": -1}, "other_lr must be >= 0"),
        ({"momentum": 1}, r"momentum must lie in \[0, 1\)"),
        ({"morph_momentum": -0.1}, r"morph_momentum must lie in \[0, 1\)"),
        ({"radius_clip": 1}, r"radius_clip must lie in \[0, 1\) or be None"),
        ({"morph_decay": -1}, "morph_decay must be >= 0"),
        ({"schedule": "linear"}, "schedule must be one of"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("optimizers", {"name": "morph_sgd", **parameters})


def teacher_and_student(optimizer: str, seed: int, samples: int, epochs: int) -> float:
    """Mean squared error of a dilation that learns from another one, from above."""
    generator = torch.Generator().manual_seed(seed)
    lower = {"name": "uniform", "low": -0.5, "high": 0.0}
    teacher = layers.Dilation(20, 10, initializer=lower, generator=generator)
    student = layers.Dilation(20, 10, initializer="upper", generator=generator)
    x = torch.rand(samples, 20, generator=generator)
    with torch.no_grad():
        y = teacher(x)
    descent = build_optimizer(student, {"name": optimizer, "lr": 1.0})
    for _ in range(epochs):
        for part in torch.randperm(samples, generator=generator).split(50):
            descent.zero_grad()
            (((student(x[part]) - y[part]) ** 2).sum(1).mean() / 2).backward()
            apply_update_heuristics(student)
            descent.step()
    with torch.no_grad():
        return float(((student(x) - y) ** 2).mean())


def test_count_normalization_finds_the_teacher_where_plain_descent_is_on_its_way() -> None:
    assert teacher_and_student("morph_sgd", seed=0, samples=500, epochs=40) < 1e-12
    assert teacher_and_student("sgd", seed=0, samples=500, epochs=40) > 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_teacher_of_two_thousand_samples(seed: int) -> None:
    assert teacher_and_student("morph_sgd", seed, samples=2000, epochs=40) < 1e-12
    assert teacher_and_student("sgd", seed, samples=2000, epochs=40) > 1e-6
