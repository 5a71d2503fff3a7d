"""What lifted training reads of a network, and every reason for which it refuses one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm

from morphlightning import bregman as B
from morphlightning import layers
from morphlightning.errors import NotSupportedError


def kinds(network: nn.Module) -> list[tuple[str, str]]:
    """Names of the affine layers and kinds of what follows them."""
    return [(layer.affine.name, type(layer.activation).__name__) for layer in B.Chain(network).layers]


def refusal(network: nn.Module) -> str:
    with pytest.raises(NotSupportedError) as caught:
        B.Chain(network)
    return str(caught.value)


def faults(network: nn.Module) -> list[str]:
    """The lines of a refusal, one a fault."""
    return refusal(network).split("\n  - ")[1:]


# ------------------------------------------------------------------------------------------------------ what is read
def test_affine_layers_and_activations_in_turn():
    assert kinds(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))) == [
        ("0", "ReLU"),
        ("2", "Tanh"),
        ("4", "Identity"),
    ]


def test_nested_sequentials_have_paths():
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert kinds(nn.Sequential(inner, nn.Sequential(nn.Sequential(nn.Linear(4, 2))))) == [
        ("0.0", "ReLU"),
        ("1.0.0", "Identity"),
    ]


def test_two_affine_layers_have_the_identity_between_them():
    network = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 3), nn.Linear(3, 2), nn.Identity())
    assert kinds(network) == [("0", "Identity"), ("2", "Identity"), ("3", "Identity")]


def test_an_activation_may_stand_in_a_network_many_times():
    act = nn.ReLU()
    block = nn.Sequential(act)
    network = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), block, nn.Linear(3, 3), block, nn.Linear(3, 2))
    assert [kind for _, kind in kinds(network)] == ["ReLU", "ReLU", "ReLU", "Identity"]


def test_a_single_affine_layer_is_a_network():
    assert kinds(nn.Linear(3, 2)) == [("the network", "Identity")]
    assert kinds(nn.Sequential(nn.Conv2d(1, 2, 3))) == [("0", "Identity")]


@pytest.mark.parametrize("where", ["linear", "conv", "end"])
def test_reshapes_belong_to_the_layer_after_them(where: str):
    network = {
        "linear": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3)),
        "conv": nn.Sequential(
            nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 3)
        ),
        "end": nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 36), nn.Unflatten(1, (1, 6, 6))),
    }[where]
    chain, x = B.Chain(network), torch.randn(5, 1, 6, 6)
    pre = chain.forward(x)
    assert len(chain) == 2
    torch.testing.assert_close(pre[-1].reshape(network(x).shape), network(x), rtol=0, atol=0)


def test_the_forward_pass_is_that_of_the_network():
    class Spline(nn.Module):
        def proximal(self) -> B.ProximalActivation:
            return B.Spline(torch.tensor([-1.0, -0.5, 0.0, 0.2]), 2.0)

        def forward(self, z: Tensor) -> Tensor:
            return self.proximal()(z)

    network = nn.Sequential(
        nn.Linear(5, 4), nn.Softshrink(0.1), nn.Linear(4, 4), Spline(), nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2)
    ).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(B.Chain(network).forward(x)[-1], network(x), rtol=0, atol=1e-14)


def test_the_parameters_are_those_of_the_affine_layers():
    network = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2, bias=False))
    assert [id(each) for each in B.Chain(network).parameters()] == [
        id(network[0].weight),
        id(network[0].bias),
        id(network[2].weight),
    ]


def test_weights_are_read_anew_at_each_use():
    network = nn.Sequential(nn.Linear(3, 2))
    chain, x = B.Chain(network), torch.randn(4, 3)
    network.double()
    network[0].weight.data.zero_()
    assert torch.equal(chain.forward(x.double())[0], network[0].bias.expand(4, 2))


# ---------------------------------------------------------------------------------------------------- what is refused
BETWEEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch_norm": (lambda: nn.BatchNorm1d(4), "leave it out, or fold it"),
    "batch_norm_2d": (lambda: nn.BatchNorm2d(4), "leave it out, or fold it"),
    "instance_norm": (lambda: nn.InstanceNorm2d(4), "leave it out, or fold it"),
    "layer_norm": (lambda: nn.LayerNorm(4), "leave it out, or fold it"),
    "group_norm": (lambda: nn.GroupNorm(2, 4), "leave it out, or fold it"),
    "dropout": (lambda: nn.Dropout(0.5), "random at each pass"),
    "dropout_2d": (lambda: nn.Dropout2d(0.5), "random at each pass"),
    "alpha_dropout": (lambda: nn.AlphaDropout(0.5), "random at each pass"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "attention"),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2), "attention"),
    "recurrent": (lambda: nn.GRU(4, 4), "recurrent"),
    "max_pool": (lambda: nn.MaxPool2d(2), "max-pooling is no pointwise activation"),
    "adaptive_max_pool": (lambda: nn.AdaptiveMaxPool2d(2), "max-pooling is no pointwise activation"),
    "average_pool": (lambda: nn.AvgPool2d(2), "use a convolution with a stride"),
    "adaptive_average_pool": (lambda: nn.AdaptiveAvgPool2d(1), "use a convolution with a stride"),
    "lp_pool": (lambda: nn.LPPool2d(2, 2), "use a convolution with a stride"),
    "unpool": (lambda: nn.MaxUnpool2d(2), "unpooling needs where the values came from"),
    "gelu": (nn.GELU, "not monotone"),
    "silu": (nn.SiLU, "not monotone"),
    "steep": (lambda: nn.ELU(2.0), "Lipschitz"),
    "conv_1d": (lambda: nn.Conv1d(4, 4, 3), "the affine layers are nn.Linear and nn.Conv2d"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "the affine layers are nn.Linear and nn.Conv2d"),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), "the affine layers are nn.Linear and nn.Conv2d"),
    "embedding": (lambda: nn.Embedding(4, 4), "not an activation"),
    "list": (lambda: nn.ModuleList([nn.Linear(4, 4)]), "not an activation"),
    "dilation": (lambda: layers.Dilation(4, 4), "max-plus"),
    "dilation_2d": (lambda: layers.Dilation2d(4, 4, 3), "max-plus"),
    "composite": (lambda: layers.DilationErosion(4, 4), "max-plus"),
    "composite_2d": (lambda: layers.DilationErosionPerceptron2d(4, 4, 3), "max-plus"),
    "min_max_plus": (lambda: layers.MinMaxPlus(4, 3, 4), "max-plus"),
    "opening_2d": (lambda: layers.Opening2d(4, 3), "max-plus"),
    "soft": (lambda: layers.SoftDilation(4, 4), "max-plus"),
    "morph_pool": (lambda: layers.MorphPool2d(4, 2), "max-plus"),
    "morph_unpool": (lambda: layers.MorphUnpool2d(2), "unpooling needs where the values came from"),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_a_layer_that_cannot_be_lifted_is_named_with_its_path_and_reason(case: str):
    make, reason = BETWEEN[case]
    module = make()
    found = faults(nn.Sequential(nn.Linear(4, 4), nn.Sequential(module, nn.ReLU()), nn.Linear(4, 2)))
    assert len(found) == 1
    assert found[0].startswith(f"1.0 ({type(module).__name__}): ")
    assert reason in found[0]


def pruned() -> nn.Linear:
    return prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)


def weight_norm() -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the one of hooks, which is still in use
        return torch.nn.utils.weight_norm(nn.Linear(4, 4))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


AFFINE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "computed from others"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "computed from others"),
    "spectral_norm_by_a_hook": (lambda: old_spectral_norm(nn.Linear(4, 4)), "computed from others"),
    "weight_norm_by_a_hook": (weight_norm, "computed from others"),
    "pruned": (pruned, "computed from others"),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), "requires_grad=False"),
    "reflecting": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
    "circular": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    "even_same": (lambda: nn.Conv2d(4, 4, 2, padding="same"), "even kernel"),
    "overridden": (lambda: Scaled(4, 4), "overrides forward"),
    "lazy": (lambda: nn.LazyLinear(4), "not known yet"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("case", AFFINE)
def test_an_affine_layer_that_cannot_be_solved_for_is_named(case: str):
    make, reason = AFFINE[case]
    module = make()
    found = faults(nn.Sequential(nn.Sequential(module), nn.ReLU(), nn.Linear(4, 2)))
    assert len(found) == 1
    assert found[0].startswith(f"0.0 ({type(module).__name__}): ")
    assert reason in found[0]


def test_a_frozen_bias_alone_is_refused_too():
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad_(False)
    assert "frozen" in faults(nn.Sequential(layer))[0]


def test_layers_that_share_weights_are_refused():
    shared = nn.Linear(4, 4)
    found = faults(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)))
    assert found == ["2.0 (Linear): it shares its weights with 0; give each layer weights of its own"]
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    assert "2 (Linear): it shares its weights with 0" in refusal(nn.Sequential(shared, nn.ReLU(), tied))
    tied = nn.Linear(4, 4)
    tied.bias = shared.bias
    assert "2 (Linear): it shares its weights with 0" in refusal(nn.Sequential(shared, nn.ReLU(), tied))


def test_an_activation_at_the_end_is_refused_with_a_way_out():
    for network in (
        nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()),
        nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Unflatten(1, (2, 2))),
        nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Identity()),
    ):
        (found,) = faults(network)
        assert found.startswith("1 (Sigmoid)")
        assert "BregmanLoss" in found


def test_an_activation_without_an_affine_layer_before_it_is_refused():
    for position, network in enumerate(
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2)))
    ):
        assert faults(network) == [f"{position} (ReLU): an activation needs an affine layer before it"]
    assert "2 (Tanh)" in refusal(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 2)))


def test_a_reshape_before_an_activation_is_refused():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(8, 2))
    assert faults(network) == ["2 (ReLU): put the reshape after the activation"]


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Flatten(0, 1), nn.Unflatten(0, (2, 2))])
def test_a_reshape_of_the_samples_is_refused(module: nn.Module):
    (found,) = faults(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), module, nn.Linear(4, 2)))
    assert found.startswith("2 (")
    assert "axis of the samples" in found


def test_networks_without_affine_layers_are_refused():
    assert faults(nn.Sequential()) == ["there is no nn.Linear and no nn.Conv2d"]
    assert faults(nn.Sequential(nn.Flatten(), nn.Identity())) == ["there is no nn.Linear and no nn.Conv2d"]


def test_what_is_no_sequential_is_refused():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    assert faults(Residual()) == ["the network (Residual): expected an nn.Sequential"]
    assert "1 (Residual): " in refusal(nn.Sequential(nn.Linear(4, 4), Residual(), nn.ReLU(), nn.Linear(4, 4)))

    class Doubling(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert "overrides nn.Sequential.forward" in refusal(Doubling(nn.Linear(4, 4)))
    assert "1 (Doubling): it overrides" in refusal(nn.Sequential(nn.Linear(4, 4), Doubling(nn.ReLU()), nn.Linear(4, 2)))


def test_all_faults_are_named_at_once():
    shared = nn.Linear(4, 4)
    network = nn.Sequential(
        nn.ReLU(),
        shared,
        nn.BatchNorm1d(4),
        nn.GELU(),
        nn.Dropout(),
        shared,
        nn.Unflatten(1, (1, 2, 2)),
        nn.Sequential(nn.ReLU(), layers.Dilation2d(1, 1, 2), nn.Conv2d(1, 1, 2, padding="same")),
        nn.Tanh(),
    )
    named = [re.split(r"[ :]", fault)[0] for fault in faults(network)]
    assert named == ["0", "2", "3", "4", "5", "7.0", "7.1", "7.2", "8"]
