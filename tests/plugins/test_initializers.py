"""Initializers: what they promise about the weights, and that layers pass signals on from the start."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from morphlightning import layers, registry
from morphlightning.errors import ConfigError, DataError, PluginParameterError
from morphlightning.interfaces import SiteSpec

DENSE, WINDOW = SiteSpec("dilation", (6, 4)), SiteSpec("dilation", (4, 1, 3, 4), (3, 4))


def fill(initializer, spec: SiteSpec, seed: int = 0) -> Tensor:
    return registry.build("initializers", initializer).fill(spec, torch.Generator().manual_seed(seed))


def test_ranges() -> None:
    many = SiteSpec("dilation", (100, 100))
    upper = fill({"name": "upper", "offset": 1.0, "spread": 0.5}, many)
    assert ((upper >= 1.0) & (upper < 1.5)).all()
    assert upper.max() - upper.min() > 0.49
    assert (fill("upper", many) >= 0).all()
    uniform = fill({"name": "uniform", "low": -3.0, "high": 2.0}, many)
    assert ((uniform >= -3) & (uniform < 2)).all()
    assert uniform.mean().item() == pytest.approx(-0.5, abs=0.1)
    assert not fill("zeros", many).any()


@pytest.mark.parametrize("name", ["upper", "uniform", "sparse", {"name": "identity", "noise": 0.1}])
def test_randomness_comes_from_the_generator_alone(name) -> None:
    state = torch.get_rng_state()
    assert torch.equal(fill(name, DENSE, 1), fill(name, DENSE, 1))
    assert not torch.equal(fill(name, DENSE, 1), fill(name, DENSE, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_upper_starts_dilations_above_their_inputs() -> None:
    x = torch.rand(20, 8)
    y = layers.Dilation(8, 5, initializer="upper")(x)
    assert (y >= x.amax(1, keepdim=True)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, (3, 2)])
def test_identity_passes_images_on(size) -> None:
    x = torch.rand(2, 3, 6, 7)
    for kind in (layers.Dilation2d, layers.Erosion2d, layers.Opening2d, layers.Closing2d):
        assert torch.equal(kind(3, kernel_size=size, initializer="identity")(x), x)
    for kind in (layers.Dilation2d, layers.Erosion2d):
        assert torch.equal(kind(3, 3, size, initializer="identity")(x), x)
        grouped = kind(4, 4, size, groups=2, initializer="identity")
        four = torch.rand(2, 4, 6, 7)
        assert torch.equal(grouped(four), four)


def test_dense_identity() -> None:
    x = torch.rand(5, 4)
    assert torch.equal(layers.Dilation(4, 4, initializer="identity")(x), x)
    assert torch.equal(layers.Erosion(4, 8, initializer="identity")(x), torch.cat([x, x], 1))
    w = fill({"name": "identity", "depth": 2.0, "noise": 0.5}, DENSE)
    diagonal = torch.zeros(6, 4, dtype=torch.bool)
    diagonal[torch.arange(6), torch.arange(6) % 4] = True
    assert not w[diagonal].any()
    assert ((w[~diagonal] >= -2) & (w[~diagonal] < -1.5)).all()


def test_flat_footprints() -> None:
    cross = fill({"name": "flat", "shape": "cross"}, SiteSpec("erosion", (1, 1, 3, 3), (3, 3)))[0, 0] == 0
    assert cross.int().tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    ball = fill({"name": "flat", "shape": "ball"}, SiteSpec("erosion", (2, 1, 5, 5), (5, 5)))[1, 0] == 0
    assert ball.int().tolist() == [[0, 1, 1, 1, 0], [1] * 5, [1] * 5, [1] * 5, [0, 1, 1, 1, 0]]
    volume = fill({"name": "flat", "shape": "cross"}, SiteSpec("erosion", (1, 1, 3, 3, 3), (3, 3, 3)))
    assert (volume == 0).sum() == 7
    assert not fill("flat", WINDOW).any()
    assert not fill({"name": "flat", "shape": "ball"}, DENSE).any()
    for shape in ("cross", "ball"):  # every footprint holds its origin
        for size in range(1, 7):
            w = fill({"name": "flat", "shape": shape}, SiteSpec("erosion", (1, 1, size), (size,)))
            assert w[0, 0, size // 2] == 0


def test_sparse_partitions_the_inputs() -> None:
    w = fill({"name": "sparse", "depth": 2.0, "noise": 0.0}, SiteSpec("dilation", (3, 7)))
    assert ((w == 0).sum(0) == 1).all()
    assert (w == 0).nonzero().tolist() == [[i, j] for i in range(3) for j in range(7) if j % 3 == i]
    assert set(w.unique().tolist()) == {-2.0, 0.0}
    few = fill({"name": "sparse", "missing": True}, SiteSpec("dilation", (5, 2)))
    assert ((few > -math.inf).sum(1) == 1).all()
    head = layers.Dilation(150, 10, initializer={"name": "sparse", "missing": True})
    assert head.mask.sum() == 150
    assert head.weight.abs().max() < 0.1
    full = fill({"name": "sparse", "noise": 0.0}, SiteSpec("dilation", (2, 3, 2), (2,)))
    assert ((full == 0).sum(0) == 1).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "upper", "spread": -1.0}, "spread must be >= 0, got -1.0"),
        ({"name": "uniform", "low": 1.0, "high": 0.0}, "low must not exceed high"),
        ({"name": "identity", "depth": -1.0}, "depth and noise must be >= 0"),
        ({"name": "sparse", "noise": math.nan}, "depth and noise must be >= 0"),
        ({"name": "flat", "shape": "star"}, "shape"),
        ({"name": "zeros", "value": 1.0}, "value"),
    ],
)
def test_bad_parameters(spec, message: str) -> None:
    with pytest.raises(PluginParameterError if "value" in spec else ConfigError, match=message):
        registry.build("initializers", spec)


# ---------------------------------------------------------------------------------------------- from data
def learned(initializer, x: Tensor, y: Tensor | None = None, kind=layers.Dilation, units: int = 3) -> Tensor:
    layer = kind(x.shape[1], units, initializer=initializer)
    layers.initialize(layer, x.split(16) if y is None else list(zip(x.split(16), y.split(16), strict=True)))
    return layer.weight.detach()


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(200, 6, generator=generator), torch.rand(200, 3, generator=generator)


def test_residual_is_the_greatest_solution() -> None:
    """No target is exceeded, and any weight that is raised exceeds one."""
    x, y = (t.double() for t in pairs())
    layer = layers.Dilation(6, 3, initializer="residual").double()
    layers.initialize(layer, [(x, y)])
    layer.eval().requires_grad_(False)
    assert (layer(x) <= y + 1e-15).all()
    for entry in range(layer.weight.numel()):
        layer.weight.view(-1)[entry] += 1e-9
        assert (layer(x) > y + 1e-10).any()
        layer.weight.view(-1)[entry] -= 1e-9
    dual = layers.Erosion(6, 3, initializer="residual").double().eval().requires_grad_(False)
    layers.initialize(dual, [(x, y)])
    assert (dual(x) >= y - 1e-15).all()
    torch.testing.assert_close(dual.weight, (x[:, None] - y[:, :, None]).amin(0))


@pytest.mark.parametrize("quantile", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("bins", [4, 64])
def test_residual_quantiles_are_off_by_at_most_a_bin(quantile: float, bins: int) -> None:
    x, y = pairs()
    difference = y[:, :, None] - x[:, None]
    exact = difference.sort(0).values[math.ceil(quantile * len(x)) - 1]
    span = difference.amax(0) - difference.amin(0)
    spec = {"name": "residual", "quantile": quantile, "bins": bins}
    off = (learned(spec, x, y) - exact).abs() / span * bins
    assert off.max() <= 1 + 1e-4
    minus = learned(spec, -x, -y, kind=layers.Erosion)  # erosions by duality
    torch.testing.assert_close(minus, learned(spec, x, y))


def test_a_quantile_forgives_outliers_and_constant_inputs() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = layers.Dilation(6, 3).eval().requires_grad_(False)
    teacher.weight.copy_(-0.5 * torch.rand(3, 6, generator=generator))
    x = torch.rand(2000, 6, generator=generator)
    x[:, 5] = 0.25
    y = teacher(x)
    outliers = y.clone()
    outliers[::100] -= 3  # one in a hundred
    minimum, robust = (learned({"name": "residual", "quantile": q}, x, outliers) for q in (0.0, 0.02))
    assert (minimum < teacher.weight - 1).all()
    assert (robust > teacher.weight - 0.1).all()
    constant = learned({"name": "residual", "quantile": 0.5}, x[:, 5:], torch.full((2000, 3), 0.5))
    assert torch.equal(constant, torch.full((3, 1), 0.25))


def test_residual_keeps_the_start_of_weights_that_nothing_reaches() -> None:
    """A window that is wider than the image: its outer taps always lie outside."""
    layer = layers.Dilation1d(1, kernel_size=7, initializer="residual")
    start = layer.weight.detach().clone()
    x, y = torch.rand(10, 1, 2), torch.rand(10, 1, 2)
    layers.initialize(layer, [(x, y)])
    kept = layer.weight.detach() == start
    assert kept[0, 0].tolist() == [True, True, False, False, False, True, True]


@pytest.mark.parametrize(("kind", "sign"), [(layers.Dilation, -1), (layers.Erosion, 1)])
def test_prototypes_are_samples_and_give_zero_at_themselves(kind, sign: int) -> None:
    x = pairs()[0]
    x = torch.cat([x, x[:50]])  # repeated samples, as DistributedSampler pads
    w = learned("prototype", x, kind=kind, units=20)
    chosen = sign * w
    assert all((sample == x).all(1).any() for sample in chosen)
    assert len(chosen.unique(dim=0)) == 20
    layer = kind(6, 20).eval().requires_grad_(False)
    layer.weight.copy_(w)
    y = layer(chosen)
    assert (y.diagonal() == 0).all()
    above = chosen[:, None] - chosen  # x - p
    assert torch.equal(y, above.amax(2) if sign < 0 else above.amin(2))


def test_prototypes_of_windows_are_patches_inside_the_image() -> None:
    x = torch.rand(8, 2, 6, 5, generator=torch.Generator().manual_seed(4))
    x[:4] = 0  # the same patch, many times
    patches = x.unfold(2, 3, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 2, 3, 2)
    for kind, origin in ((layers.Erosion2d, 1), (layers.Dilation2d, -1)):
        layer = kind(2, 12, (3, 2), initializer="prototype")
        layers.initialize(layer, [x])
        chosen = layer.weight.detach() if origin > 0 else -layer.weight.detach().flip(2, 3)
        assert len(chosen.unique(dim=0)) == 12
        assert all((patch == patches).flatten(1).all(1).any() for patch in chosen)
    depthwise = layers.Erosion2d(2, kernel_size=3, initializer="prototype")
    layers.initialize(depthwise, [x[4:]])
    whole = x[4:].unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 2, 3, 3)
    assert (depthwise.weight[:, 0] == whole).flatten(1).all(1).any()  # each channel from its own


def test_too_few_samples_for_prototypes() -> None:
    x = pairs()[0][:5]
    with pytest.raises(DataError, match="8 units need as many different samples, the data hold 5; pass more data"):
        learned("prototype", torch.cat([x, x]), units=8)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "residual", "quantile": -0.1}, r"quantile must lie in \[0, 1\], got -0.1"),
        ({"name": "residual", "quantile": math.nan}, "quantile must lie"),
        ({"name": "residual", "bins": 0}, "bins must be >= 1, got 0"),
    ],
)
def test_bad_parameters_of_learners(spec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("initializers", spec)


def test_learners_start_as_upper_until_there_are_data() -> None:
    for name in ("residual", "prototype"):
        assert torch.equal(fill(name, WINDOW), fill("upper", WINDOW))
