"""Layers: values are those of the functions; missing weights; modules that are copied, saved and compiled."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import layers, registry
from morphlightning.errors import ConfigError, DtypeError, PluginError, ShapeError
from morphlightning.interfaces import Initializer, SiteSpec

IMAGE = (2, 3, 6, 5)


def image(rank: int = 2) -> Tensor:
    return torch.randn(2, 3, *(6, 5, 4)[:rank], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (layers.Dilation(5, 4), mf.dilation),
        (layers.Erosion(5, 4), mf.erosion),
        (layers.Opening(5, 4), mf.opening),
        (layers.Closing(5, 4), mf.closing),
    ],
)
def test_dense_layers(layer, function) -> None:
    x = torch.randn(2, 7, 5)
    assert torch.equal(layer(x), function(x, layer.weight))
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), function(x, layer.weight))
    with pytest.raises(ShapeError, match=rf"{type(layer).__name__}: the last axis of x"):
        layer(torch.randn(2, 6))
    with pytest.raises(DtypeError, match=type(layer).__name__):
        layer(torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windowed_layers(rank: int) -> None:
    def of(name: str):
        return getattr(layers, f"{name}{rank}d"), getattr(mf, f"{name.lower()}{rank}d", None)

    x = image(rank)
    for name in ("Dilation", "Erosion"):
        kind, function = of(name)
        depthwise = kind(3)
        assert torch.equal(depthwise(x), function(x, depthwise.weight[:, 0]))
        how = {"stride": 2, "dilation": 2, "padding": 1, "border": "replicate", "merge": "sum"}
        full = kind(3, 4, 2, **how)
        assert torch.equal(full(x), function(x, full.weight, **how))
        assert torch.equal(full(x[1]), full(x)[1])
    for name in ("Opening", "Closing", "Gradient"):
        kind, function = of(name)
        layer = kind(3, 3, dilation=2) if rank == 1 else kind(3)
        assert torch.equal(layer(x), function(x, layer.weight[:, 0], dilation=2 if rank == 1 else 1))
    hat = of("TopHat")[0]
    white, black = hat(3), hat(3, kind="black")
    assert torch.equal(white(x), getattr(mf, f"white_tophat{rank}d")(x, white.weight[:, 0]))
    assert torch.equal(black(x), getattr(mf, f"black_tophat{rank}d")(x, black.weight[:, 0]))
    rebuild = of("Reconstruction")[0]
    opened, closed = rebuild(3), rebuild(3, kind="closing", connectivity=5)
    seed = getattr(mf, f"erosion{rank}d")(x, opened.weight[:, 0])
    assert torch.equal(opened(x), getattr(mf, f"reconstruction_by_dilation{rank}d")(seed, x))
    seed = getattr(mf, f"dilation{rank}d")(x, closed.weight[:, 0])
    assert torch.equal(closed(x), getattr(mf, f"reconstruction_by_erosion{rank}d")(seed, x, 5))
    assert (opened(x) <= x).all()
    assert (closed(x) >= x).all()


def test_dense_composites() -> None:
    x = torch.randn(3, 5)
    both = layers.DilationErosion(5, 4)
    side_by_side = [mf.dilation(x, both.dilation.weight), mf.erosion(x, both.erosion.weight)]
    assert torch.equal(both(x), torch.cat(side_by_side, -1))
    mixed = layers.DilationErosionPerceptron(5, 4)
    with torch.no_grad():
        mixed.logit.copy_(torch.tensor([-30.0, 0.0, 1.0, 30.0]))
    assert ((mixed.mix > 0) & (mixed.mix <= 1)).all()
    dilated, eroded = mf.dilation(x, mixed.dilation.weight), mf.erosion(x, mixed.erosion.weight)
    torch.testing.assert_close(mixed(x), eroded + mixed.mix * (dilated - eroded))
    supremum = layers.SupOfErosions(5, 4, terms=3)
    expected = mf.erosion(x, supremum.erosion.weight).view(3, 4, 3).amax(-1)
    assert torch.equal(supremum(x), expected)
    block = layers.MinMaxPlus(5, 6, 4)
    hidden = mf.dilation(block.linear(x), block.dilation.weight)
    assert torch.equal(block(x), mf.erosion(hidden, block.erosion.weight))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windowed_composites(rank: int) -> None:
    x = image(rank)
    both = getattr(layers, f"DilationErosion{rank}d")(3, 2, stride=2)
    assert torch.equal(both(x), torch.cat([both.dilation(x), both.erosion(x)], 1))
    assert torch.equal(both(x[0]), both(x)[0])
    mixed = getattr(layers, f"DilationErosionPerceptron{rank}d")(3, 2)
    torch.testing.assert_close(mixed(x), (mixed.dilation(x) + mixed.erosion(x)) / 2)
    supremum = getattr(layers, f"SupOfErosions{rank}d")(3, 2, terms=3)
    assert torch.equal(supremum(x), supremum.erosion(x).view(2, 2, 3, *x.shape[2:]).amax(2))
    block = getattr(layers, f"MinMaxPlus{rank}d")(3, 4, 2)
    assert block(x).shape == (2, 2, *x.shape[2:])
    block(x).sum().backward()
    assert block.linear.weight.grad.any()


def test_masks() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 2] = False
    layer = layers.Dilation(5, 4, mask=mask)
    x = torch.randn(3, 5, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, mf.dilation(x[:, [0, 1, 3, 4]], layer.weight[:, [0, 1, 3, 4]]))
    y.sum().backward()
    assert not layer.weight.grad[~mask].any()
    assert not x.grad[:, 2].any()
    assert layer.weight.isfinite().all()
    assert "missing=4" in repr(layer)
    # the mask survives saving, and an optimizer with decay keeps everything finite
    torch.optim.AdamW(layer.parameters(), weight_decay=0.5).step()
    again = layers.Dilation(5, 4)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    with pytest.raises(ConfigError, match=r"output 1 has no finite weight \(1 such outputs of 4\)"):
        layers.Dilation(5, 4, mask=torch.arange(4)[:, None] != 1)
    with pytest.raises(ShapeError, match=r"mask \(3, 5\) does not fit weight \(4, 5\)"):
        layers.Erosion(5, 4, mask=torch.ones(3, 5))


def test_flat_initializers_mask_what_lies_outside() -> None:
    layer = layers.Opening2d(3, 3, initializer={"name": "flat", "shape": "cross"})
    cross = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)
    x = image()
    assert torch.equal(layer(x), mf.opening2d(x, cross))
    layer(x).sum().backward()
    assert not layer.weight.grad[:, :, ~cross].any()
    with torch.no_grad():
        layer.weight.sub_(0.1)
    layer.reset_parameters()
    assert torch.equal(layer(x), mf.opening2d(x, cross))


@dataclass(frozen=True)
class Odd(Initializer):
    """Fills with one value, in a shape of its own if asked."""

    value: float = 0.0
    extra: int = 0

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        return torch.full(spec.shape[self.extra :], self.value)


@pytest.mark.parametrize(
    ("initializer", "message"),
    [
        (Odd(math.nan), "NaN or"),
        (Odd(math.inf), "inf"),
        (Odd(0.0, 1), r"gave \(5,\)"),
        (Odd(-math.inf), "output 0 has no finite weight"),
    ],
)
def test_odd_initializers(initializer: Initializer, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layers.Dilation(5, 4, initializer=initializer)


def test_a_generator_makes_weights_reproducible() -> None:
    made = [layers.Dilation2d(3, 4, generator=torch.Generator().manual_seed(5)).weight for _ in range(2)]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Dilation(0, 4), r"every size must be >= 1, got a weight of shape \(4, 0\)"),
        (lambda: layers.Dilation2d(3, 4, -3), "kernel_size must be one integer >= 1 or 2 of them, got -3"),
        (lambda: layers.Dilation2d(3, 4, (3, 3, 3)), "kernel_size must be"),
        (lambda: layers.Erosion2d(3, 4, groups=2), "groups=2 must divide in_channels=3 and out_channels=4"),
        (lambda: layers.Erosion2d(4, groups=2), "groups=2 needs out_channels"),
        (lambda: layers.Opening2d(3, stride=2), "Opening2d does not take stride"),
        (lambda: layers.Gradient2d(3, border="reflect"), "Gradient2d does not take border"),
        (lambda: layers.TopHat2d(3, kind="grey"), "kind must be 'white' or 'black', got 'grey'"),
        (lambda: layers.Reconstruction2d(3, kind="dilation"), "kind must be 'opening' or 'closing'"),
        (lambda: layers.MorphPool2d(3, merge="sum"), "MorphPool2d does not take merge"),
        (lambda: layers.SoftDilation(3, 4, beta=0.0), "beta must be a number > 0, or inf, got 0.0"),
        (lambda: layers.SoftErosion(3, 4, derivative="first"), "SoftErosion does not take derivative"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_unknown_rules_are_named() -> None:
    with pytest.raises(PluginError, match="bouligan"):
        layers.Dilation(3, 4, derivative="bouligan")
    with pytest.raises(PluginError, match="counted"):
        layers.Dilation(3, 4, heuristic="plain+counted")


def test_soft_layers() -> None:
    x = torch.randn(3, 5)
    for kind, function in ((layers.SoftDilation, mf.soft_dilation), (layers.SoftErosion, mf.soft_erosion)):
        layer = kind(5, 4, beta=2.0)
        torch.testing.assert_close(layer(x), function(x, layer.weight, 2.0))
        layer.set_beta(50.0)
        torch.testing.assert_close(layer(x), function(x, layer.weight, 50.0))
        again = kind(5, 4)
        again.load_state_dict(layer.state_dict())
        torch.testing.assert_close(again(x), layer(x))
        with pytest.raises(ConfigError, match="beta"):
            layer.set_beta(math.nan)


LAYERS = [
    lambda **rules: layers.Dilation(5, 4, **rules),
    lambda **rules: layers.Closing(5, 4, **rules),
    lambda **rules: layers.Erosion2d(3, 4, merge="sum", **rules),
    lambda **rules: layers.MorphPool2d(3, 2, **rules),
]


def example(layer: torch.nn.Module) -> Tensor:
    return torch.randn(3, 5) if "2d" not in type(layer).__name__ else torch.randn(2, 3, 6, 4)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict", "assign"])
def test_copies_compute_and_count_by_themselves(make, how: str) -> None:
    layer = make(derivative={"name": "bouligand", "eps": 0.1}, heuristic="count_normalized")
    x = example(layer)
    layer(x).sum().backward()  # a copy made between backward and step must not fail
    if how == "deepcopy":
        other = copy.deepcopy(layer)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = make(derivative={"name": "bouligand", "eps": 0.1}, heuristic="count_normalized")
        other.load_state_dict(layer.state_dict(), assign=how == "assign")
    assert other.site.weight is other.weight
    assert other.site is not layer.site
    layer.zero_grad()
    other.zero_grad()
    layer.site.clear()
    other.site.clear()
    assert torch.equal(other(x), layer(x))
    gy = torch.randn_like(layer(x))
    for module in (layer, other):
        module(x).backward(gy)
        layers.apply_update_heuristics(module)
    assert torch.equal(other.weight.grad, layer.weight.grad)


def test_a_pickled_layer_works_in_a_process_that_never_built_one(tmp_path: Path) -> None:
    torch.save(layers.Dilation(5, 4, derivative={"name": "uniform", "eps": 0.125}), tmp_path / "layer.pt")
    script = (
        "import sys, torch\n"
        "layer = torch.load(sys.argv[1], weights_only=False)\n"
        "layer(torch.ones(2, 5)).sum().backward()\n"
        "print(layer.weight.grad.sum().item())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "layer.pt")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(8.0)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_of_dtype(make, dtype: torch.dtype) -> None:
    layer = make(heuristic="count_normalized").to(dtype)
    x = example(layer).to(dtype)
    y = layer(x)
    assert y.dtype == layer.weight.dtype == dtype
    y.sum().backward()
    layers.apply_update_heuristics(layer)
    assert layer.weight.grad.dtype == dtype
    assert layer.weight.grad.any()


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("derivative", ["first", "bouligand"])
@pytest.mark.parametrize("heuristic", ["plain", "count_normalized"])
def test_compiled_layers(make, derivative: str, heuristic: str) -> None:
    layer = make(derivative=derivative, heuristic=heuristic)
    x = example(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gy = torch.randn_like(layer(x))
    grads = []
    for module in (layer, compiled):
        layer.zero_grad()
        for _ in range(2):
            module(x).backward(gy)
        layers.apply_update_heuristics(layer)
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_functional_call_and_per_sample_gradients() -> None:
    layer = layers.Dilation2d(3, 4)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

    x = image()
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    layer(x).square().sum().backward()
    torch.testing.assert_close(per_sample.sum(0), layer.weight.grad)


def test_tied_weights_belong_to_their_layer() -> None:
    first, second = layers.Dilation(4, 4), layers.Dilation(4, 4, heuristic="count_normalized")
    second.weight = first.weight
    assert second.site.weight is first.weight


def test_every_layer_is_exported_and_documented() -> None:
    for name in layers.__all__:
        assert getattr(layers, name).__doc__, name
    assert registry.names("initializers")
