"""Networks as plain, smaller modules, and their operators as plain torch ones."""

import math

import lightning as L
import pytest
import torch
from torch import nn

from morphlightning import structure
from morphlightning.errors import ConfigError
from morphlightning.layers import (
    Dilation,
    Dilation1d,
    Dilation2d,
    Dilation3d,
    Erosion,
    Erosion2d,
    MorphPool2d,
    Opening2d,
    SupOfErosions,
    SupOfErosions2d,
)
from morphlightning.models import MorphologicalAutoencoder, MorphologicalClassifier
from morphlightning.splines import LinearSpline, NonuniformSpline, SplineModule


def kinds(module):
    return [type(step) for step in module]


def without(layer, *columns):
    """No output has these inputs."""
    layer.mask[:, list(columns)] = False
    return layer


# ----------------------------------------------------------------------------------------------------- networks
def test_pruned_classifier_becomes_a_plain_chain(tmp_path):
    model = MorphologicalClassifier((1, 8, 8), channels=(), head="max_plus", head_units=40)
    x = torch.rand(64, 1, 8, 8)
    pruned, report = structure.prune_head(model, x, mask_weights=True)
    plain = structure.export(pruned)
    assert kinds(plain) == [nn.Flatten, nn.Linear, Dilation]
    assert torch.equal(plain(x), pruned(x))
    assert not plain.training
    assert not any(p.requires_grad for p in plain.parameters())
    assert structure.count_parameters(plain) == report.parameters[1]

    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    filters = len(report.kept)
    rebuilt = nn.Sequential(nn.Flatten(), nn.Linear(64, filters), Dilation(filters, 10))
    rebuilt.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    assert torch.equal(rebuilt(x), plain(x))


@pytest.mark.parametrize(
    "model",
    [
        lambda: MorphologicalClassifier((1, 8, 8), channels=(4,), hidden=(6, 5)),
        lambda: MorphologicalAutoencoder((1, 8, 8), channels=(4,)),
        lambda: MorphologicalAutoencoder((1, 8, 8), channels=(), hidden=9, code=4),
    ],
    ids=["classifier", "convolutional autoencoder", "dense autoencoder"],
)
def test_models_become_their_networks(model):
    model, x = model().eval(), torch.rand(3, 1, 8, 8)
    plain = structure.export(model)
    assert not any(isinstance(module, L.LightningModule) for module in plain.modules())
    assert torch.equal(plain(x), model(x))


def test_statistics_and_rules_are_left_behind():
    layers = [Dilation(4, 5, derivative="bouligand", heuristic="count_normalized"), nn.Dropout(), Erosion(5, 2)]
    chain = nn.Sequential(nn.Sequential(*layers), nn.Identity())
    for layer in chain.modules():
        if isinstance(layer, Dilation | Erosion):
            layer.site.read(frozenset({"count"}))
    plain = structure.export(chain)
    assert kinds(plain) == [Dilation, Erosion]
    for layer in plain:
        assert layer.site.ghosts.touches is None
        assert not layer.site.needs
        assert not layer.pipeline.updates
        assert layer.pipeline.policy.winner_only
    assert chain[0][0].site.ghosts.touches is not None


# --------------------------------------------------------------------------------------------------- dead parts
def test_what_nobody_reads_goes_all_along_the_chain():
    chain = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), Dilation(5, 4), nn.Sequential(Erosion(4, 3), Dilation(3, 2))
    ).double()
    without(chain[3][1], 1)  # so erosion 1 goes; dilation 3 is read by it alone, linear 0 and 2 by dilation 3 alone
    chain[3][0].mask.copy_(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]]))
    chain[2].mask.copy_(torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]))
    plain = structure.export(chain)
    sizes = [tuple(step.weight.shape) for step in plain if hasattr(step, "weight")]
    assert sizes == [(3, 6), (3, 3), (2, 3), (2, 2)]
    assert torch.equal(plain[0].weight, chain[0].weight[[1, 3, 4]])
    x = torch.randn(20, 6).double()
    torch.testing.assert_close(plain(x), chain(x), rtol=0, atol=1e-14)


def test_what_a_linear_layer_multiplies_by_zero_goes():
    chain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    chain[2].weight.data[:, [0, 3]] = 0
    plain = structure.export(chain)
    assert plain[0].out_features == plain[2].in_features == 3
    x = torch.randn(20, 6).double()
    torch.testing.assert_close(plain(x), chain(x))
    chain[2].weight.data.zero_()
    plain = structure.export(chain)
    assert plain[0].out_features == 1
    torch.testing.assert_close(plain(x), chain(x))


def test_channels_of_a_convolution_go():
    chain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), without(Dilation(12, 2), 4, 5, 6, 7, 11))
    plain = structure.export(chain)
    assert plain[0].out_channels == 2
    assert plain[2].in_features == 8
    x = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(plain(x), chain(x))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.suprema = nn.ModuleList([SupOfErosions(4, 3, terms=9), SupOfErosions(3, 2, terms=9)])
        for layer in self.suprema:
            layer.erosion.weight.data = torch.randint(0, 3, layer.erosion.weight.shape).float()

    def forward(self, x):
        return self.suprema[1](self.suprema[0](x))


def test_suprema_become_their_basis_inside_any_module():
    module, x = Own(), torch.randn(30, 4)
    plain = structure.export(module)
    assert all(isinstance(layer, structure.ErosionBasis) for layer in plain.suprema)
    assert not any(layer.training for layer in plain.modules())
    assert torch.equal(plain(x), module(x))
    assert isinstance(structure.export(module.suprema[0]), structure.ErosionBasis)
    assert isinstance(module.suprema[0], SupOfErosions)


def test_a_foreign_lightning_module_is_refused():
    with pytest.raises(ConfigError, match="LightningModule whose network is not known"):
        structure.export(L.LightningModule())


# -------------------------------------------------------------------------------------------------- plain torch
OPERATORS = {
    "dense": lambda: (nn.Sequential(nn.Linear(5, 6), without(Dilation(6, 4), 2), Erosion(4, 3)), (4, 5)),
    "more axes": lambda: (Erosion(5, 6), (4, 3, 5)),
    "signals": lambda: (Dilation1d(2, 3, 4, border="circular"), (4, 2, 9)),
    "images": lambda: (nn.Sequential(Dilation2d(2, 3, (3, 2), stride=2), Erosion2d(3, 2, 3, dilation=2)), (4, 2, 9, 8)),
    "constant border": lambda: (Erosion2d(2, 3, 3, border="constant", value=0.5), (4, 2, 5, 6)),
    "groups": lambda: (nn.Sequential(Dilation2d(4, 6, 3, groups=2), Erosion2d(6, None, 2)), (4, 4, 5, 6)),
    "sum": lambda: (Dilation2d(4, 6, 3, groups=2, merge="sum"), (4, 4, 5, 6)),
    "stages": lambda: (nn.Sequential(Opening2d(2), MorphPool2d(2), SupOfErosions2d(2, 2)), (4, 2, 6, 6)),
    "volumes": lambda: (Dilation3d(1, 2, 2), (4, 1, 4, 3, 5)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_plain_torch_computes_the_same(name):
    module, shape = OPERATORS[name]()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape)
    for x in (torch.randn(shape), torch.randint(0, 2, shape).float()):
        assert torch.equal(structure.PlainTorch(module)(x), module(x))
    module, x = module.bfloat16(), torch.randn(shape).bfloat16()
    assert torch.equal(structure.PlainTorch(module)(x), module(x))


@pytest.mark.parametrize("name", ["dense", "groups", "stages"])
def test_torch_export_for_any_batch(name, tmp_path):
    module, shape = OPERATORS[name]()
    module, batch = structure.export(module), ({0: torch.export.Dim("batch")},)
    x = torch.randn(7, *shape[1:])
    for network, ours in ((structure.PlainTorch(module), False), (module, True)):
        program = torch.export.export(network, (torch.randn(shape),), dynamic_shapes=batch)
        assert ("morphlightning" in str(program.graph)) == ours
        torch.export.save(program, tmp_path / "network.pt2")
        assert torch.equal(torch.export.load(tmp_path / "network.pt2").module()(x), module(x))


def spline_network():
    """Every kind of learned spline, away from its start."""
    bounded = {"channels": 4, "constraint": "lipschitz", "learn_scale": True}
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        LinearSpline(metric="l2", extrapolation="constant", **bounded),
        NonuniformSpline(knots=[-1.0, -0.2, 0.1, 2.0], **bounded),
        NonuniformSpline(knots=7, share_knots=False, learn_knots=True, groups=2, **bounded),
        LinearSpline(),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def test_splines_become_what_is_applied():
    network, x = spline_network(), 3 * torch.randn(5, 1, 6, 6)
    plain = structure.export(network)
    assert all(module.constraint is None for module in plain if isinstance(module, SplineModule))
    assert network[1].constraint is not None
    torch.testing.assert_close(plain(x), network(x))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(structure.PlainTorch(plain), (x[:2],), dynamic_shapes=batch)
    assert "searchsorted" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.filterwarnings("ignore")
def test_splines_in_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, x = spline_network(), 3 * torch.randn(5, 1, 6, 6)
    plain, batch = structure.PlainTorch(structure.export(network)), ({0: torch.export.Dim("batch")},)
    torch.onnx.export(plain, (x[:2],), dynamo=True, dynamic_shapes=batch).save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = MorphologicalClassifier((1, 8, 8), channels=(4,), head="max_plus", head_units=40)
    network = structure.export(structure.prune_head(model, torch.rand(64, 1, 8, 8), mask_weights=True)[0])
    assert math.isinf(network[-1].effective_weight.min())
    batch, x = ({0: torch.export.Dim("batch")},), torch.rand(7, 1, 8, 8)
    program = torch.onnx.export(structure.PlainTorch(network), (x[:2],), dynamo=True, dynamic_shapes=batch)
    program.save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), network(x))
