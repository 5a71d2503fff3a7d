from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning.bregman import Chain
from morphlightning.errors import ConfigError
from morphlightning.models import MultilayerPerceptron


def test_it_is_the_sequential_that_it_says() -> None:
    torch.manual_seed(0)
    network = MultilayerPerceptron((1, 4, 5), hidden=(7, 3), out_shape=(2, 6))
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 12), nn.Unflatten(1, (2, 6))
    )
    plain.load_state_dict(network.state_dict())
    x = torch.randn(5, 1, 4, 5)
    assert torch.equal(network(x), plain(x))
    assert network(x).shape == (5, 2, 6)
    assert len(Chain(network)) == 3


def test_shapes_and_activations() -> None:
    x = torch.randn(3, 2, 8)
    assert MultilayerPerceptron((2, 8))(x).shape == x.shape
    assert MultilayerPerceptron((2, 8), hidden=(), out_shape=(10,))(x).shape == (3, 10)
    network = MultilayerPerceptron((2, 8), activation={"name": "linear_spline", "knots": 5})
    assert [type(module).__name__ for module in network][2] == "LinearSpline"
    assert network[2].values.shape == (64, 5)


@pytest.mark.parametrize("settings", [{"in_shape": ()}, {"in_shape": (2, 0)}, {"in_shape": (2,), "hidden": (0,)}])
def test_sizes_that_cannot_be(settings: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match="MultilayerPerceptron"):
        MultilayerPerceptron(**settings)
