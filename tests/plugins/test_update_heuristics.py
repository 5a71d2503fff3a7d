"""What the heuristics of stage update promise about the step that follows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import apply_update_heuristics, layers, registry
from morphlightning.errors import ConfigError


def gradient(layer: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    layer.zero_grad()
    ((layer(x) - y) ** 2).sum(1).mean().backward()
    apply_update_heuristics(layer, optimizer)


@pytest.mark.parametrize("kind", [layers.Dilation, layers.Erosion])
@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5])
def test_the_step_inside_the_radius_keeps_the_winners(kind, quantile: float) -> None:
    torch.manual_seed(0)
    clip = {"name": "radius_clipped", "quantile": quantile}
    layer = kind(12, 8, heuristic=["count_normalized", clip], initializer="uniform").double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.7)
    x, y = torch.rand(40, 12).double(), torch.rand(40, 8).double()
    sign = 1 if kind is layers.Dilation else -1
    top = (sign * x[:, None] + layer.weight.detach()).topk(2)
    gap, winner = top.values[..., 0] - top.values[..., 1], top.indices[..., 0]
    gradient(layer, x, y, optimizer)
    step = 0.7 * layer.weight.grad
    exact = gap.flatten().sort().values[int(quantile * gap.numel())]
    assert exact / 2 * 7 / 8 <= step.abs().max() <= exact / 2 * (1 + 1e-12)
    before = layer(x).detach()
    optimizer.step()
    moved = (sign * x[:, None] + layer.weight.detach()).argmax(-1)
    inside = gap >= 2 * step.abs().max()
    assert inside.double().mean() >= 1 - quantile
    assert torch.equal(moved[inside], winner[inside])
    predicted = before - sign * step[torch.arange(8), winner]  # the first-order model
    torch.testing.assert_close(layer(x).detach()[inside], predicted[inside])


def test_a_step_inside_the_radius_is_left_alone() -> None:
    layer = layers.Dilation(5, 4, heuristic={"name": "radius_clipped", "lr": 1e-6}).double()
    plain = layers.Dilation(5, 4).double()
    plain.load_state_dict(layer.state_dict())
    x, y = torch.rand(6, 5).double(), torch.rand(6, 4).double()
    gradient(layer, x, y)
    gradient(plain, x, y)
    assert torch.equal(layer.weight.grad, plain.weight.grad)


def test_ties_alone_do_not_stop_a_layer() -> None:
    layer = layers.Dilation(5, 4, heuristic={"name": "radius_clipped", "lr": 1.0}, initializer="zeros")
    gradient(layer, torch.zeros(6, 5), -torch.ones(6, 4))
    assert layer.weight.grad[:, 0].tolist() == [2.0] * 4


def test_a_radius_needs_a_rate() -> None:
    layer = layers.Dilation(5, 4, heuristic="count_normalized+radius_clipped")
    with pytest.raises(ConfigError, match=r"apply_update_heuristics\(model, optimizer\) with the optimizer that steps"):
        gradient(layer, torch.rand(6, 5), torch.rand(6, 4))


def test_two_layers_with_sup_norm_move_the_output_by_at_most_the_rate() -> None:
    torch.manual_seed(0)
    rules: dict[str, Any] = {"heuristic": ["count_normalized", {"name": "sup_norm", "layers": 2}]}
    network = nn.Sequential(layers.Dilation(12, 9, **rules), layers.Erosion(9, 6, **rules)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    x, y = torch.rand(40, 12).double(), torch.rand(40, 6).double() - 1
    before = [p.detach().clone() for p in network.parameters()]
    outputs = network(x).detach()
    gradient(network, x, y, optimizer)
    optimizer.step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert (new - old).abs().max().item() == pytest.approx(0.15, rel=1e-12)
    moved = (network(x) - outputs).abs().max().item()
    assert 0.1 < moved <= 0.3 + 1e-12


@pytest.mark.parametrize("name", ["sup_norm", "radius_clipped"])
def test_a_gradient_of_zeros_stays_zero(name: str) -> None:
    layer = layers.Dilation(5, 4, heuristic=name)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.rand(6, 5)).backward(torch.zeros(6, 4))
    apply_update_heuristics(layer, optimizer)
    assert not layer.weight.grad.any()


def test_orders_that_break_a_promise_are_refused() -> None:
    names = ("count_normalized", "sup_norm", "radius_clipped")
    for order in itertools.permutations(names):
        if order == names:
            assert len(layers.Dilation(3, 2, heuristic="+".join(order)).pipeline.updates) == 3
        else:
            with pytest.raises(ConfigError, match="must come after"):
                layers.Dilation(3, 2, heuristic="+".join(order))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "radius_clipped", "quantile": 1.0}, r"quantile must lie in \[0, 1\), got 1.0"),
        ({"name": "radius_clipped", "quantile": -0.1}, r"quantile must lie in \[0, 1\), got -0.1"),
        ({"name": "radius_clipped", "lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"name": "sup_norm", "layers": 0}, "layers must be >= 1, got 0"),
    ],
)
def test_bad_parameters(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("heuristics", spec)
