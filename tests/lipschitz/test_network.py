import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from morphlightning_plugins.activations import Absolute, PReLU
from torch import nn

from morphlightning.errors import ConfigError, NotCertifiable
from morphlightning.lipschitz import LipschitzNetwork, certify
from morphlightning.splines import LinearSpline, NonuniformSpline

ACTIVATIONS = {
    "spline": partial(LinearSpline, constraint="lipschitz", knots=9, init="absolute"),
    "nonuniform spline": partial(NonuniformSpline, constraint="lipschitz", knots=7, learn_knots=True, learn_scale=True),
    "group_sort": "group_sort",
    "groups of three": {"name": "group_sort", "size": 3},
    "relu": "relu",
    "prelu": partial(PReLU, limit=1.0),
    "absolute": Absolute,
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.3, weight_decay=0.1),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=1.0, max_iter=2),
}


def fit(
    network: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], steps: int, seed: int = 0
) -> None:
    """Toward a target far steeper than the network may be."""
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(seed))
    y = 10 * torch.sin(5 * x.flatten(1).sum(1, keepdim=True))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("layer", ["spectral", "orthogonal"])
def test_training_toward_a_steep_target_keeps_the_constant(activation, layer: str, hunt) -> None:
    torch.manual_seed(0)
    network = LipschitzNetwork((3,), (6, 6), 1, activation=activation, layer=layer, constant=1.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(2):
        fit(network, optimizer, (3,), 8)
        spec = network.lipschitz_spec()
        assert (spec.norm_in, spec.norm_out) == ("l2", "l2")
        assert 1.2 < spec.constant <= 1.5
    spec = network.double().lipschitz_spec()
    assert spec.constant <= 1.5 * (1 + (1e-6 if layer == "orthogonal" else 0))  # torch's basis is rounded to float32
    assert hunt(network, (3,), spec, steps=10) <= spec.constant


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_keeps_the_constant_of_a_convolutional_network(optimizer, hunt) -> None:
    torch.manual_seed(0)
    network = LipschitzNetwork((1, 6, 6), (5,), 2, channels=(2, 4), activation=ACTIVATIONS["spline"])
    fit(network, optimizer(network.parameters()), (1, 6, 6), 4)
    spec = network.lipschitz_spec()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert spec.constant <= 1
    spec = network.double().lipschitz_spec()
    assert spec.constant <= 1
    assert hunt(network, (1, 6, 6), spec, steps=4) <= spec.constant


@pytest.mark.parametrize("activation", ["spline", "prelu"])
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(activation: str) -> None:
    torch.manual_seed(0)
    build = partial(LipschitzNetwork, (1, 5, 5), (4,), 1, channels=(2,), activation=ACTIVATIONS[activation])
    network, again = build(), build()
    optimizer, resumed = (torch.optim.Adam(net.parameters(), lr=0.05) for net in (network, again))
    fit(network, optimizer, (1, 5, 5), 3)
    again.load_state_dict(copy.deepcopy(network.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, how in ((network, optimizer), (again, resumed)):
        fit(net, how, (1, 5, 5), 3, seed=1)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_is_not_bounded_is_refused() -> None:
    steep = partial(LinearSpline, init=lambda x: 3 * x)
    with pytest.raises(ConfigError, match=r"more than 1\.0"):
        LipschitzNetwork((3,), activation=steep)
    with pytest.raises(NotCertifiable, match="Hardshrink"):
        LipschitzNetwork((3,), activation=lambda channels, channel_dim: nn.Hardshrink())
    for options in ({"in_shape": ()}, {"in_shape": (3,), "channels": (4,)}, {"in_shape": (3,), "hidden": (0,)}):
        with pytest.raises(ConfigError, match="positive sizes"):
            LipschitzNetwork(**options)
    with pytest.raises(ConfigError, match="layer must be"):
        LipschitzNetwork((3,), layer="free")
    with pytest.raises(ConfigError, match="too small"):
        LipschitzNetwork((1, 2, 2), channels=(4,), padding="valid")


def test_a_certificate_lists_all_layers() -> None:
    network = LipschitzNetwork((4,), (4,), 2, activation="relu")
    assert [name for name, _ in certify(network).layers] == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_two_processes_keep_one_network_and_its_constant(tmp_path) -> None:
    script = Path(__file__).with_name("ddp_script.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["constant"] == other["constant"] <= 1
    assert all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())
