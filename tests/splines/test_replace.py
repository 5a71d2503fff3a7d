"""Learnable activations in the place of those of other networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.splines import LinearSpline, replace_activations


class Residual(nn.Module):
    """Uses one activation twice; its channels cannot be read off a chain."""

    def __init__(self, channels: int = 4, out: int | None = None) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)
        self.last = nn.Conv2d(channels, out or channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.last(self.act(self.first(x))))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.act, self.down = nn.Linear(6, 9), nn.Dropout(0.5), nn.GELU(), nn.Linear(9, 6)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return scale * self.down(self.act(self.drop(self.up(x))))


def within_reach(x: Tensor) -> Tensor:
    return x.clamp(-2, 2)


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(24, 5),
        nn.ReLU(),
    )


@pytest.mark.parametrize("by_example", [False, True])
def test_a_chain_computes_the_same_with_splines_a_channel(by_example: bool) -> None:
    net, x = chain(), torch.randn(3, 1, 8, 8)
    net(x)
    before, statistics = net.eval()(x), net[1].running_mean.clone()
    net[3].train()
    names = replace_activations(net, nn.ReLU, "linear_spline", knots=31, example_input=x if by_example else None)
    assert names == ["2", "3.1", "6", "8"]
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert [len(net.get_submodule(name).values) for name in names] == [4, 6, 24 if by_example else 1, 5]
    assert [net.get_submodule(name).training for name in names] == [False, True, False, False]
    assert torch.equal(net[1].running_mean, statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(x).sum().backward()
    assert net[2].values.grad is not None


def test_other_networks_need_an_example_or_share() -> None:
    x = torch.randn(2, 4, 5, 5)
    for example, splines in ((None, 1), (x, 4)):
        net = Residual()
        before = net(x)
        assert replace_activations(net, nn.ReLU, example_input=example) == ["act"]
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
        assert len(net.act.values) == splines


def test_channels_of_tokens_lie_on_the_last_axis() -> None:
    net, x = Tokens(), torch.randn(2, 7, 6)
    before = net.eval()(x, 2.0)
    replace_activations(net, nn.GELU, "linear_spline", example_input=(x, 2.0))
    assert isinstance(net.act, LinearSpline)
    assert (net.act.channels, net.act.channel_dim) == (9, -1)
    torch.testing.assert_close(net(x, 2.0), before, rtol=0, atol=2e-2)


def test_shared_activations_stay_shared() -> None:
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 4), act)
    x = within_reach(torch.randn(5, 3))
    before = net(x)
    assert replace_activations(net, nn.Tanh) == ["1", "3"]
    assert net[1] is net[3]
    torch.testing.assert_close(net(x), before, rtol=0, atol=5e-3)

    partly = nn.Sequential(nn.Linear(3, 4), act, nn.Flatten(), act)
    replace_activations(partly, nn.Tanh)
    assert len(partly[1].values) == 1

    odd = Residual(4, out=8)
    with pytest.raises(
        ConfigError, match=r"act is used in places with different channels \(4 on axis 1, 8 on axis 1\)"
    ):
        replace_activations(odd, nn.ReLU, example_input=torch.randn(1, 4, 5, 5))
    assert isinstance(odd.act, nn.ReLU)
    replace_activations(odd, nn.ReLU, example_input=torch.randn(1, 4, 5, 5), channels=None)
    assert len(odd.act.values) == 1


@pytest.mark.parametrize(
    "module",
    [nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(4), nn.Tanh(), nn.SiLU(), nn.Hardtanh(-0.6, 0.6), nn.ELU(), nn.Sigmoid()],
    ids=lambda module: str(module),
)
def test_any_pointwise_function_is_matched(module: nn.Module) -> None:
    if isinstance(module, nn.PReLU):
        nn.init.uniform_(module.weight, 0.1, 0.6)
    net = nn.Sequential(nn.Linear(3, 4), module)
    x = torch.randn(20, 3)
    before = net(x)
    replace_activations(net, type(module))
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-2)


def test_groups_average_slopes_and_parameters_overrule() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7]))
    replace_activations(net, nn.PReLU, {"name": "linear_spline", "knots": 3}, groups=2, constraint="monotone")
    torch.testing.assert_close(net[1].table().slopes[:, 0], torch.tensor([0.2, 0.6]))
    replace_activations(net, LinearSpline, "linear_spline", init="absolute", channels=4)
    assert torch.equal(net[1](torch.full((1, 4), -3.0)), torch.full((1, 4), 3.0))
    replace_activations(net, LinearSpline, "soft_threshold", threshold=0.2)
    assert net[1].threshold.shape == (4,)


def test_dtype_and_device_are_kept() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    replace_activations(net, nn.ReLU)
    assert net[1].values.dtype == torch.float64
    net = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.ReLU())
    replace_activations(net, nn.ReLU)
    assert net[1].values.device.type == "meta"


@pytest.mark.parametrize(
    ("model", "types", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Tanh()),
            nn.ReLU,
            "no module of type ReLU .* made of Linear, Sequential, Tanh",
        ),
        (nn.Sequential(nn.Linear(2, 2)), (nn.ReLU, nn.ELU), "no module of type ReLU, ELU"),
        (nn.ReLU(), nn.ReLU, "the model is a ReLU itself"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)), nn.Softmax, "1 is a Softmax, which is not pointwise"),
        (nn.Sequential(nn.Linear(2, 2), nn.GLU(-1)), nn.GLU, "not pointwise"),
    ],
)
def test_what_cannot_be_replaced(model: nn.Module, types: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace_activations(model, types)
