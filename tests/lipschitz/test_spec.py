import math

import pytest
import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.interfaces import LipschitzSpec
from morphlightning.lipschitz import certify, lipschitz_spec, pointwise, register
from morphlightning.structure import minimal_basis

ROUNDING = 1 + 1e-9
IMAGE = (2, 5, 6)


def some(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with parameters and running statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and "beta" not in name:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            if "var" in name:
                tensor.data.abs_().add_(0.1)
    return module.eval()


LAYERS = {
    "linear": (lambda: nn.Linear(7, 4), (7,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 4, 2, 1), (2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), IMAGE),
    "conv2d strided": (lambda: nn.Conv2d(2, 3, 3, (2, 3), padding=2), IMAGE),
    "conv2d even stride": (lambda: nn.Conv2d(2, 3, 4, 4), (2, 8, 8)),
    "conv2d dilated, strided, groups": (lambda: nn.Conv2d(2, 4, 3, 2, 2, dilation=2, groups=2), IMAGE),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (1, 3), padding="same"), IMAGE),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 4, 3)),
    "conv2d reflected": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "conv2d replicated": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="replicate"), IMAGE),
    "conv2d circular, larger": (lambda: nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"), (1, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, 2, 1, output_padding=1), (2, 6)),
    "transposed, strided, groups": (lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, groups=2), IMAGE),
    "transposed, dilated": (lambda: nn.ConvTranspose2d(2, 3, 2, 2, dilation=3), (2, 3, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 1, 2), (2, 2, 3, 2)),
    "batch norm": (lambda: nn.BatchNorm2d(2), IMAGE),
    "layer norm": (lambda: nn.LayerNorm(5, eps=0.1), (3, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), (4, 5)),
    "rms norm": (lambda: nn.RMSNorm(5, eps=0.1), (3, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(2, eps=0.1, affine=True), IMAGE),
    "running instance norm": (lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True), IMAGE),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "max pool dilated": (lambda: nn.MaxPool2d(2, 2, dilation=2), IMAGE),
    "max pool 1d": (lambda: nn.MaxPool1d(2), (2, 6)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "average pool, divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "average pool 1d": (lambda: nn.AvgPool1d(3, 1), (2, 6)),
    "average pool 3d": (lambda: nn.AvgPool3d(2), (1, 4, 4, 4)),
    "average pool, borders": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 4, 4)),
    "average pool, borders, divisor": (lambda: nn.AvgPool2d(3, 2, 1, True, divisor_override=2), (1, 4, 4)),
    "power pool": (lambda: nn.LPPool2d(2, 3, 2), (1, 5, 5)),
    "sum pool": (lambda: nn.LPPool1d(1, 3, 1), (1, 6)),
    "unfold": (lambda: nn.Unfold(3, 2, 1), (1, 5, 5)),
    "reflection": (lambda: nn.ReflectionPad2d((1, 0, 2, 2)), (1, 3, 4)),
    "replication": (lambda: nn.ReplicationPad1d((2, 1)), (2, 1)),
    "circular": (lambda: nn.CircularPad2d((1, 1, 2, -1)), (1, 3, 4)),
    "constant": (lambda: nn.ConstantPad1d(1, 3.0), (1, 3)),
    "nearest": (lambda: nn.UpsamplingNearest2d(scale_factor=(2, 3)), IMAGE),
    "bilinear": (lambda: nn.Upsample(scale_factor=3, mode="bilinear"), IMAGE),
    "linear of one number": (lambda: nn.Upsample(scale_factor=2, mode="linear"), (2, 1)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d(1), (2, 1, 3)),
    "adaptive max": (lambda: nn.AdaptiveMaxPool1d(1), (2, 6)),
    "flatten": (nn.Flatten, IMAGE),
    "pixel shuffle": (lambda: nn.PixelUnshuffle(2), (1, 4, 4)),
    "zero padding": (lambda: nn.ZeroPad2d(2), IMAGE),
    "dropout": (lambda: nn.Dropout(0.5), (6,)),
    "softmax": (lambda: nn.Softmax(-1), (2, 4)),
    "log-softmax": (lambda: nn.LogSoftmax(-1), (2, 4)),
    "prelu": (lambda: nn.PReLU(6), (6,)),
}
ONE_NORM = {"log-softmax": "linf"} | dict.fromkeys(("layer norm", "group norm", "rms norm", "instance norm"), "l2")

POINTWISE = (
    nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softsign(), nn.Softshrink(), nn.Tanhshrink(),
    nn.Hardtanh(), nn.Hardsigmoid(), nn.Hardswish(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(),
    nn.RReLU(-3.0, 0.0).eval(), nn.LeakyReLU(-1.5), nn.ELU(2.0), nn.CELU(0.3), nn.Softplus(3.0), nn.PReLU(1, -1.7),
)  # fmt: skip


@pytest.mark.parametrize("module", POINTWISE, ids=repr)
def test_no_slope_is_above_the_bound_of_pointwise_functions(module: nn.Module) -> None:
    spec = lipschitz_spec(module)
    x = torch.linspace(-20, 20, 20001, dtype=torch.float64)
    found = (module.double()(x).diff() / x.diff()).abs().max().item()
    assert found <= spec.constant * (1 + 1e-6)
    assert found >= (0.998 if spec.exact else 0.99) * spec.constant
    assert lipschitz_spec(module, "linf") == spec._replace(norm_in="linf", norm_out="linf")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_pair_of_inputs_breaks_the_bound_of_torchs_layers(name, norm, hunt) -> None:
    build, shape = LAYERS[name]
    module = some(build())
    if norm != ONE_NORM.get(name, norm):
        with pytest.raises(NotCertifiable, match=r"measure in(puts in l2, or use BatchNorm or MeanShift| linf)"):
            certify(module, norm)
        return
    certificate = certify(module, norm)
    found = hunt(module, shape, certificate.spec, steps=4)
    assert found <= certificate.constant * ROUNDING
    assert found >= (0.97 if certificate.spec.exact else 0.2) * certificate.constant


MORPHOLOGICAL = {
    "dilation": (lambda: layers.Dilation(5, 3), (5,)),
    "erosion": (lambda: layers.Erosion(5, 3), (5,)),
    "opening": (lambda: layers.Opening(5, 3), (5,)),
    "closing": (lambda: layers.Closing(5, 3), (5,)),
    "sup of erosions": (lambda: layers.SupOfErosions(5, 3), (5,)),
    "both": (lambda: layers.DilationErosion(5, 3), (5,)),
    "perceptron": (lambda: layers.DilationErosionPerceptron(5, 3), (5,)),
    "min max plus": (lambda: layers.MinMaxPlus(5, 4, 3), (5,)),
    "soft dilation": (lambda: layers.SoftDilation(5, 3, beta=3.0), (5,)),
    "soft erosion 2d": (lambda: layers.SoftErosion2d(2, 3), IMAGE),
    "dilation 2d": (lambda: layers.Dilation2d(2, 3), IMAGE),
    "sum of channels": (lambda: layers.Dilation2d(4, 2, groups=2, merge="sum"), (4, 5, 5)),
    "sums of both": (lambda: layers.DilationErosion2d(4, 2, merge="sum"), (4, 5, 5)),
    "min max plus 2d": (lambda: layers.MinMaxPlus2d(2, 3, 2), IMAGE),
    "opening 2d": (lambda: layers.Opening2d(2), IMAGE),
    "gradient": (lambda: layers.Gradient2d(2), IMAGE),
    "top-hat": (lambda: layers.TopHat1d(2), (2, 7)),
    "reconstruction": (lambda: layers.Reconstruction2d(2), IMAGE),
    "signed dilation": (lambda: layers.SignedDilation(5, 3), (5,)),
    "soft signed erosion": (lambda: layers.SoftSignedErosion(5, 3, beta=2.0), (5,)),
    "mean shift": (lambda: layers.MeanShift(5), (5,)),
    "basis": (lambda: minimal_basis(layers.SupOfErosions(5, 3)), (5,)),
    "pool": (lambda: layers.MorphPool2d(2, 3, 2, 1), IMAGE),
}


@pytest.mark.parametrize(("build", "shape"), MORPHOLOGICAL.values(), ids=MORPHOLOGICAL)
def test_morphological_layers_are_bounded_in_the_sup_norm(build, shape, hunt) -> None:
    module = some(build())
    spec = lipschitz_spec(module, "linf")
    assert (spec.norm_in, spec.norm_out) == ("linf", "linf")
    found = hunt(module, shape, spec, steps=4)
    assert found <= spec.constant * ROUNDING
    assert found >= (1 - 1e-9 if spec.exact else 0.2) * spec.constant


class Halved(nn.Linear):
    """A subclass with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * super().forward(x)


def test_a_chain_goes_from_l2_to_linf_and_not_back(hunt) -> None:
    network = some(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(layers.Dilation(5, 4), nn.Linear(4, 3))))
    certificate = certify(network)
    assert (certificate.spec.norm_in, certificate.spec.norm_out) == ("l2", "linf")
    assert [name for name, _ in certificate.layers] == ["0", "1", "2.0", "2.1"]
    assert hunt(network, (6,), certificate.spec) <= certificate.constant
    assert certificate.constant == pytest.approx(math.prod(spec.constant for _, spec in certificate.layers))
    assert str(certificate).splitlines()[0].startswith("|f(x) - f(y)|_linf <= ")
    with pytest.raises(NotCertifiable, match=r"layer '1' \(LayerNorm\).*l2"):
        certify(nn.Sequential(layers.Dilation(5, 4), nn.LayerNorm(4)))


def test_a_layer_that_comes_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    once, twice = certify(layer).constant, certify(nn.Sequential(layer, nn.ReLU(), layer)).constant
    assert twice == pytest.approx(once**2)


UNKNOWN = {
    "unknown": (nn.Bilinear(2, 2, 2), "nothing is known"),
    "subclass with another forward": (Halved(3, 3), "nothing is known"),
    "discontinuous": (nn.Hardshrink(), "nothing is known"),
    "dropout in training": (nn.Dropout().train(), "training mode"),
    "batch norm in training": (nn.BatchNorm1d(3).train(), "training mode"),
    "chance": (nn.RReLU().train(), "training mode"),
    "running statistics in training": (nn.InstanceNorm1d(3, track_running_stats=True).train(), "training mode"),
    "no eps": (nn.LayerNorm(3, eps=0.0), "without eps"),
    "batch statistics": (nn.BatchNorm1d(3, track_running_stats=False).eval(), "statistics of a batch"),
    "drawn windows": (nn.FractionalMaxPool2d(2, output_size=2), "by chance"),
    "odd power": (nn.LPPool1d(3, 2), "both signs"),
    "powers at borders": (nn.LPPool1d(2, 2, ceil_mode=True), "ceil_mode"),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), "both signs"),
    "size": (nn.Upsample(size=4), "size of images"),
    "corners": (nn.UpsamplingBilinear2d(scale_factor=2), "align_corners"),
    "axes": (nn.Upsample(scale_factor=2), "scale_factor for each"),
    "classes": (nn.LogSoftmax(-1), "number of classes"),
    "adaptive": (nn.AdaptiveAvgPool2d(2), "size of images"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "indices"),
    "provenance": (layers.MorphPool2d(2, return_provenance=True), "provenance"),
    "jump": (nn.Softplus(threshold=1), "jumps"),
    "unbounded": (nn.CELU(-1.0), "not positive"),
    "infinite": (nn.Linear(2, 2).requires_grad_(False), "its constant is"),
}
UNKNOWN["infinite"][0].weight.fill_(math.inf)


@pytest.mark.parametrize(("module", "why"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_certified_is_named(module: nn.Module, why: str) -> None:
    with pytest.raises(NotCertifiable, match=why):
        certify(module)
    with pytest.raises(NotCertifiable, match=rf"layer '1.0' \({type(module).__name__}\): .*{why}"):
        certify(nn.Sequential(nn.Identity(), nn.Sequential(module)))


def test_hooks_and_a_forward_of_its_own_are_refused() -> None:
    hooked, own, outer = nn.Linear(2, 2), nn.Linear(2, 2), nn.Sequential(nn.Identity())
    hooked.register_forward_hook(lambda module, args, y: 5 * y)
    own.forward = lambda x: 5 * x
    outer.register_forward_pre_hook(lambda module, args: (5 * args[0],))
    for module in (hooked, own, outer):
        with pytest.raises(NotCertifiable, match="hooks"):
            certify(module)


def test_users_declare_or_register_their_layers() -> None:
    class Declared(nn.Module):
        def lipschitz_spec(self) -> LipschitzSpec:
            return LipschitzSpec(3.0, why="by hand")

    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    @register(Foreign)
    def _(module: Foreign, norm: str) -> LipschitzSpec:
        return pointwise(2.0, f"doubled, in {norm}")

    assert certify(nn.Sequential(Declared(), Foreign())).constant == pytest.approx(6)
    assert lipschitz_spec(Foreign(), "linf").why == "doubled, in linf"


def test_parametrized_layers_are_bounded_by_the_weight_they_use() -> None:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    assert lipschitz_spec(layer).constant == pytest.approx(1)
