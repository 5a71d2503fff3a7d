"""Boxes hold what they say they hold, and those of signed layers are no larger than they must be."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import ConfigError, DataError, NotCertifiable
from morphlightning.guarantees.robustness import Box, box_around, propagate, register_interval
from morphlightning.lipschitz import GroupSort, Residual, SpectralConv2d, SpectralLinear
from morphlightning.splines import LinearSpline, NonuniformSpline

DENSE = {
    "signed dilation": lambda n, m: layers.SignedDilation(n, m),
    "signed erosion": lambda n, m: layers.SignedErosion(n, m),
    "soft signed dilation": lambda n, m: layers.SoftSignedDilation(n, m, beta=3.0),
    "soft signed erosion": lambda n, m: layers.SoftSignedErosion(n, m, beta=300.0),
    "soft signed limit": lambda n, m: layers.SoftSignedErosion(n, m, beta=math.inf),
    "soft dilation": lambda n, m: layers.SoftDilation(n, m, beta=0.5, precision="bfloat16"),
    "dilation": lambda n, m: layers.Dilation(n, m),
    "erosion": lambda n, m: layers.Erosion(n, m),
    "perceptron": lambda n, m: layers.DilationErosionPerceptron(n, m),
    "supremum": lambda n, m: layers.SupOfErosions(n, m, terms=2),
    "min-max-plus": lambda n, m: layers.MinMaxPlus(n, 5, m),
    "opening": lambda n, m: nn.Sequential(layers.Opening(n, 4), layers.Dilation(n, m)),
    "closing": lambda n, m: nn.Sequential(layers.Closing(n, 4), layers.SignedErosion(n, m)),
    "linear": lambda n, m: nn.Linear(n, m),
    "spectral": lambda n, m: SpectralLinear(n, m, normalize="clip"),
    "residual": lambda n, m: nn.Sequential(Residual(layers.Dilation(n, n), 0.3), layers.SignedDilation(n, m)),
    "shift": lambda n, m: nn.Sequential(layers.Shift(0.3), layers.MeanShift(n), nn.BatchNorm1d(n), nn.Linear(n, m)),
    "spline": lambda n, m: nn.Sequential(LinearSpline(n, knots=7, limit=1.0), nn.Linear(n, m)),
    "free spline": lambda n, m: nn.Sequential(nn.Linear(n, m), NonuniformSpline(knots=5, limit=1.0)),
    "activations": lambda n, m: nn.Sequential(
        nn.Tanh(), nn.PReLU(), nn.Linear(n, m), nn.LeakyReLU(0.2), nn.ELU(), nn.Sigmoid(), nn.LogSigmoid(), nn.Dropout()
    ),
    "sorted": lambda n, m: nn.Sequential(nn.Linear(n, 2 * m), GroupSort(2), nn.ReLU(), layers.Erosion(2 * m, m)),
}
IMAGES = {
    "dilation": lambda: layers.Dilation2d(2, 3),
    "added": lambda: layers.Erosion2d(2, 3, merge="sum", border="constant", value=0.2),
    "soft": lambda: layers.SoftDilation2d(2, 3, beta=20.0),
    "opening": lambda: layers.Opening2d(2),
    "reconstruction": lambda: layers.Reconstruction2d(2, kind="closing"),
    "pooling": lambda: nn.Sequential(layers.MorphPool2d(2), nn.MaxPool2d(2)),
    "averages": lambda: nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(2)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), SpectralConv2d(3, 2, stride=2)
    ),
    "perceptron": lambda: layers.DilationErosionPerceptron2d(2, 2),
}


def randomized(module: nn.Module, generator: torch.Generator, missing: float = 0.2) -> nn.Module:
    """Random parameters, buffers and missing weights, in evaluation mode."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, layers.MorphLayer):
                part.mask.copy_(torch.rand(part.mask.shape, generator=generator) >= missing)
                part.mask[:, 0] = True  # a unit without weights is infinite, and mixtures of them are NaN
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
                part.running_var.copy_(0.1 + torch.rand(part.running_var.shape, generator=generator))
            if isinstance(part, layers.MeanShift):
                part.mean.copy_(torch.randn(part.mean.shape, generator=generator))
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
            if parameter.shape == (1,):
                parameter.abs_()  # the slope of a PReLU
    return module.eval()


def in_float64(network: nn.Module) -> nn.Module:
    """The same in float64, with the weights that spectral layers apply in their own dtype."""
    network = copy.deepcopy(network)
    applied = {
        name: part.effective_weight.detach().double()
        for name, part in network.named_modules()
        if isinstance(part, SpectralLinear | SpectralConv2d)
    }
    network.double()
    for name, weight in applied.items():
        part = network.get_submodule(name)
        part.weight.data, part.norm, part.constant = weight, lambda: torch.ones((), dtype=torch.float64), 1 + 2e-13
    return network


def assert_holds(network: nn.Module, x: Tensor, eps: float, generator: torch.Generator, clip=(0.0, 1.0)) -> None:
    """Corners, random points and mixtures of them lie in the box, as computed and in float64."""
    inputs = box_around(x, eps, clip)
    outputs = propagate(network, inputs)
    exact = in_float64(network)
    for kind in range(12):
        share = torch.rand(x.shape, generator=generator)
        share = (share > 0.5).to(x) if kind % 3 == 0 else share.round(decimals=1) if kind % 3 == 1 else share
        z = torch.lerp(inputs.lower, inputs.upper, share.to(x)).clamp(inputs.lower, inputs.upper)
        with torch.no_grad():
            for y in (network(z), exact(z.double())):
                assert not y.isnan().any()
                assert (y >= outputs.lower).all()
                assert (y <= outputs.upper).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.sampled_from(sorted(DENSE)), min_size=1, max_size=4),
    st.sampled_from([1e-6, 0.03, 0.3, 1.0]),
)
def test_no_input_of_the_box_leaves_the_outputs_box(seed: int, kinds: list[str], eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 7, (len(kinds) + 1,), generator=generator).tolist()
    parts = [DENSE[kind](n, m) for kind, n, m in zip(kinds, sizes, sizes[1:], strict=False)]
    network = randomized(nn.Sequential(*parts), generator)
    assert_holds(network, torch.rand(5, sizes[0], generator=generator), eps, generator)


@pytest.mark.parametrize("kind", IMAGES)
def test_no_image_of_the_box_leaves_the_outputs_box(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for eps in (0.01, 0.2):
        network = randomized(IMAGES[kind](), generator, missing=0.0)
        assert_holds(network, torch.rand(3, 2, 8, 8, generator=generator), eps, generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["signed dilation", "soft signed erosion", "linear", "opening", "spline", "shift"])
def test_other_dtypes_hold_too(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    network = randomized(DENSE[kind](5, 4), generator).to(dtype)
    assert_holds(network, torch.rand(5, 5, generator=generator).to(dtype), 0.1, generator)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_boxes_of_signed_layers_are_attained(seed: int, dilation: bool) -> None:
    """By the coordinates' own minima, and at a corner."""
    generator = torch.Generator().manual_seed(seed)
    kind = layers.SignedDilation if dilation else layers.SignedErosion
    layer = randomized(kind(6, 4), generator).double()
    x = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    box = box_around(x, 0.3, None)
    found = propagate(layer, box)
    a, b, sign = (layer.a, layer.b, 1) if dilation else (layer.b, layer.a, -1)
    with torch.no_grad():
        for i in range(4):  # the best place of each coordinate does not depend on the others
            place = ((b[i] - a[i]) / 2).nan_to_num(0.0)
            place = torch.where(a[i].isinf(), math.inf, torch.where(b[i].isinf(), -math.inf, place))
            y = layer(place.expand(3, -1).clamp(box.lower, box.upper))[:, i]
            least = found.lower if dilation else found.upper
            torch.testing.assert_close(y, least[:, i], atol=1e-15, rtol=1e-14)
        ends = torch.maximum(box.upper[:, None] + a, b - box.lower[:, None]).amax(-1)
        torch.testing.assert_close(sign * ends, found.upper if dilation else found.lower, atol=1e-15, rtol=1e-14)


def test_units_without_weights_make_no_nan() -> None:
    layer = layers.SignedDilation(3, 2, initializer="zeros")
    layer.mask[1] = False
    box = propagate(layer, box_around(torch.rand(2, 3), 0.1))
    assert (box.lower[:, 1] == -math.inf).all()
    assert (box.upper[:, 1] <= torch.finfo(torch.float32).min).all()
    assert box.lower[:, 0].isfinite().all()


def test_splines_are_exact_between_knots() -> None:
    spline = LinearSpline(knots=5, limit=2.0, init=lambda t: (t.abs() - 1).abs())
    box = propagate(spline, Box(torch.tensor([[-1.5], [0.25], [-3.0]]), torch.tensor([[0.5], [0.75], [3.0]])))
    torch.testing.assert_close(box.lower[:, 0], torch.tensor([0.0, 0.25, 0.0]), atol=3e-5, rtol=0)
    torch.testing.assert_close(box.upper[:, 0], torch.tensor([1.0, 0.75, 2.0]), atol=3e-5, rtol=0)


def test_hooks_unknown_layers_and_training_are_refused_by_name() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    class Shifted(layers.SignedDilation):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    box = box_around(torch.rand(2, 3), 0.1)
    with pytest.raises(NotCertifiable, match=r"layer '0.1' \(Odd\).*register_interval"):
        propagate(nn.Sequential(nn.Sequential(nn.ReLU(), Odd())), box)
    with pytest.raises(NotCertifiable, match="Shifted"):
        propagate(Shifted(3, 2), box)
    for part in (layers.MeanShift(3), nn.BatchNorm1d(3), nn.Dropout()):
        with pytest.raises(NotCertifiable, match=r"call eval\(\) first"):
            propagate(nn.Sequential(part), box)
    hooked = nn.Sequential(nn.ReLU())
    hooked[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(NotCertifiable, match="hooks"):
        propagate(hooked, box)
    register_interval(Odd)(lambda module, box: Box(-torch.ones_like(box.lower), torch.ones_like(box.upper)))
    assert (propagate(Odd(), box).upper == 1).all()


def test_negative_slopes_are_refused() -> None:
    prelu = nn.PReLU(init=-0.1)
    for module in (nn.LeakyReLU(-0.1), prelu):
        with pytest.raises(NotCertifiable, match="negative slope"):
            propagate(module, box_around(torch.rand(2, 3), 0.1))


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1, width=32), st.floats(1e-7, 1))
def test_the_ball_holds_what_is_computed_in_float32(value: float, eps: float) -> None:
    x = torch.tensor([[value]])
    box = box_around(x, eps)
    for end in ((x + eps).clamp(0, 1), (x - eps).clamp(0, 1), (x.double() + eps).clamp(0, 1)):
        assert (box.lower <= end).all()
        assert (end <= box.upper).all()
    assert float(box.lower) >= 0
    assert float(box.upper) <= 1


def test_eps_and_images_in_other_units_are_refused() -> None:
    x = torch.rand(2, 3)
    with pytest.raises(ConfigError, match=r"eps=8 .* that is eps=0.03137"):
        box_around(x, 8)
    for eps in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="no radius"):
            box_around(x, eps)
    with pytest.raises(DataError, match=r"outside clip=\(0.0, 1.0\)"):
        box_around(2 * x + 1, 0.1)
    with pytest.raises(DataError, match="divide grey levels by 255"):
        box_around((255 * x).to(torch.uint8), 0.1)
    assert box_around(x * 300, 8, (0.0, 300.0)).upper.max() <= 300
