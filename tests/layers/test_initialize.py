"""Layers that learn their start from data: what they see, in which order, and what is refused."""

from __future__ import annotations

import copy
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from morphlightning import layers
from morphlightning.errors import ConfigError, DataError, ShapeError
from morphlightning.layers import initialize


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def lowered(layer: nn.Module, seed: int = 0) -> nn.Module:
    """A teacher with weights U(-0.5, 0)."""
    teacher = copy.deepcopy(layer).eval().requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.copy_(-0.5 * seeded(*parameter.shape, seed=seed))
    return teacher


def error(layer: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (layer.eval()(x) - y).square().mean().item()


WINDOWS: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any]]] = [
    (layers.Dilation2d, (3, 4, (3, 2)), {}),
    (layers.Erosion2d, (3, 4, (2, 3)), {}),
    (layers.Dilation2d, (4, 6, 3), {"groups": 2, "stride": (1, 2), "dilation": (2, 1)}),
    (layers.Erosion2d, (4, None, 3), {"padding": "valid"}),
    (layers.Dilation2d, (3, 3, (4, 2)), {"border": "constant", "value": 0.7}),
    (layers.Erosion2d, (3, 3, (4, 2)), {"border": "constant", "value": 0.3}),
    (layers.Erosion2d, (3, 3, 3), {"border": "reflect"}),
    (layers.Dilation2d, (3, 3, 3), {"border": "circular", "padding": 1}),
    (layers.Dilation2d, (3, None, 3), {"merge": "sum"}),
    (layers.MorphPool2d, (4, (3, 2)), {"stride": 2, "padding": 1}),
]


# ----------------------------------------------------------------------------------------------- what is seen
@pytest.mark.parametrize(("kind", "args", "options"), WINDOWS)
def test_rows_hold_what_competes(kind: Any, args: Any, options: Any) -> None:
    """The largest candidate plus weight is the layer's output, row by row: the oracle of every geometry."""
    layer = lowered(kind(*args, **options))
    x = seeded(2, args[0], 6, 7)
    rows, y = layer.candidates(x), layer.wanted(layer(x))
    w = layer.weight.view(y.shape[1], y.shape[2], -1)
    assert torch.equal((rows.unsqueeze(2) + w).amax(-1), y)


@pytest.mark.parametrize(("kind", "args", "options"), WINDOWS)
def test_windows_find_a_teacher(kind: Any, args: Any, options: Any) -> None:
    layer = kind(*args, initializer="residual", **options)
    teacher, x = lowered(layer), seeded(300, args[0], 6, 7)
    y = teacher(x)
    initialize(layer, [(x[:100], y[:100]), (x[100:], y[100:])])
    assert error(layer, x, y) < 1e-13
    assert (layer.weight >= teacher.weight - 1e-6).all()


@pytest.mark.parametrize("kind", [layers.Dilation, layers.Erosion])
def test_dense_layers_find_a_teacher(kind: type[nn.Module]) -> None:
    layer = kind(20, 10, initializer="residual")
    teacher, x = lowered(layer), seeded(2000, 20)
    y = teacher(x)
    assert initialize(layer, list(zip(x.split(50), y.split(50), strict=True))) == [""]
    assert error(layer, x, y) < 1e-14
    assert error(kind(20, 10), x, y) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = layers.Dilation(20, 10, initializer="residual").to(dtype)
    teacher, x = lowered(layer.double()), seeded(500, 20).double()
    layer = layer.to(dtype)
    initialize(layer, [(x, teacher(x))])
    assert layer.weight.dtype == dtype
    assert error(layer.double(), x, teacher(x)) < (1e-28 if dtype == torch.float64 else 1e-4)


def test_leading_axes_and_samples_without_batch_are_rows() -> None:
    layer, x = layers.Dilation(5, 3, initializer="residual"), seeded(40, 5)
    teacher = lowered(layer)
    other = copy.deepcopy(layer)
    initialize(layer, [(x, teacher(x))])
    shaped = x.view(4, 10, 5)
    initialize(other, [(shaped, teacher(shaped))])
    assert torch.equal(layer.weight, other.weight)


def test_missing_weights_stay_missing() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, :4] = False
    layer, x = layers.Dilation(5, 3, initializer="residual", mask=mask), seeded(200, 5)
    teacher = lowered(layer)
    initialize(layer, [(x, teacher(x))])
    assert torch.equal(layer.mask, mask)
    assert error(layer, x, teacher(x)) < 1e-13


def test_classes_become_one_and_zero() -> None:
    layer, x = layers.Dilation(4, 3, initializer="residual"), seeded(60, 4)
    classes = torch.arange(60) % 3
    initialize(layer, [(x, classes)])
    y = nn.functional.one_hot(classes, 3).float()
    torch.testing.assert_close(layer.weight.detach(), (y[:, :, None] - x[:, None]).amin(0))


@pytest.mark.parametrize("kind", [layers.SoftDilation2d, layers.SoftErosion2d])
def test_soft_layers_learn_as_their_limit_does(kind: type[nn.Module]) -> None:
    hard = {layers.SoftDilation2d: layers.Dilation2d, layers.SoftErosion2d: layers.Erosion2d}[kind]
    soft, limit = kind(2, 3, 3, initializer="residual"), hard(2, 3, 3, initializer="residual")
    x, y = seeded(20, 2, 5, 5), seeded(20, 3, 5, 5, seed=1)
    for layer in (soft, limit):
        initialize(layer, [(x, y)])
    assert torch.equal(soft.weight, limit.weight)


# --------------------------------------------------------------------------------------------------- the order
class Backwards(nn.Module):
    """Calls its second layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.late = layers.Erosion(6, 4, initializer="prototype")
        self.early = layers.Dilation(5, 6, initializer="prototype")
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.late(self.dropout(self.norm(self.early(x))))
        return y


def test_layers_learn_in_the_order_of_their_calls() -> None:
    model, x = Backwards(), seeded(50, 5)
    model.norm.eval()
    assert initialize(model, x.split(10)) == ["early", "late"]
    assert all(layer.initialized for layer in (model.early, model.late))
    model.eval()
    with torch.no_grad():
        reached = model.norm(model.early(x))  # what reaches the second layer now that the first has learned
    assert all(any(torch.equal(row, sample) for sample in reached) for row in model.late.weight)
    assert initialize(model, []) == []


def test_nothing_else_of_the_module_changes() -> None:
    model, x = Backwards(), seeded(50, 5)
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    kept = {name: value.clone() for name, value in model.norm.state_dict().items()}
    random_state = torch.get_rng_state()
    initialize(model, DataLoader(TensorDataset(x), 10, shuffle=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in model.norm.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hidden_layers_learn_from_targets_of_their_own() -> None:
    model = nn.Sequential(
        layers.Dilation(6, 5, initializer="residual"), nn.Linear(5, 2), layers.Dilation(2, 3, initializer="residual")
    )
    teacher, x = lowered(model[0]), seeded(300, 6)
    asked = []

    def target(name: str, batch: list[Tensor]) -> Tensor | None:
        asked.append(name)
        return teacher(batch[0]) if name == "0" else None

    initialize(model, [(x, seeded(300, 3))], target=target)
    assert asked == ["0", "2"]
    assert error(model[0], x, teacher(x)) < 1e-13


# ------------------------------------------------------------------------------------------------------ the data
def student(x: Tensor, loader: Any, **options: Any) -> Tensor:
    layer = layers.Dilation(x.shape[1], 4, initializer=options.pop("initializer", "prototype"))
    initialize(layer, loader, seed=3, **options)
    return layer.weight.detach().clone()


@pytest.mark.parametrize("initializer", ["residual", {"name": "residual", "quantile": 0.1}, "prototype"])
def test_the_order_and_size_of_batches_do_not_matter(initializer: Any) -> None:
    x, y = seeded(64, 5), seeded(64, 4, seed=1)
    settings = [{"batch_size": 7}, {"batch_size": 64}, {"batch_size": 16, "shuffle": True}]
    loaders: list[Any] = [DataLoader(TensorDataset(x, y), **setting) for setting in settings]
    loaders.append([(x[60:], y[60:]), (x[:60], y[:60])])
    first, *others = (student(x, loader, initializer=initializer) for loader in loaders)
    assert all(torch.equal(first, other) for other in others)


def test_the_seed_decides_what_is_drawn() -> None:
    x = seeded(64, 5)
    one, same, other = layers.Dilation(5, 4, initializer="prototype"), None, None
    same, other = copy.deepcopy(one), copy.deepcopy(one)
    for layer, seed in ((one, 1), (same, 1), (other, 2)):
        initialize(layer, [x], seed=seed)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


class Reading(Dataset[Tensor]):
    """Notes what is read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.read = x, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return self.x[index]


def test_max_batches_takes_a_part_of_all_classes() -> None:
    data = Reading(seeded(1000, 5))
    student(data.x, DataLoader(data, 20), max_batches=3)
    read = set(data.read)
    assert len(read) == 60
    assert min(read) < 200
    assert max(read) > 800  # sorted data are not read from their beginning alone
    with pytest.raises(ConfigError, match="max_batches=0"):
        student(data.x, DataLoader(data, 20), max_batches=0)


class Stream(IterableDataset[Tensor]):
    """Samples in their order."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Any:
        return iter(self.x)


def test_samplers_of_a_users_own_and_streams_are_read_as_they_are() -> None:
    data = Reading(seeded(100, 5))
    weights = torch.zeros(100)
    weights[:10] = 1
    student(data.x, DataLoader(data, 10, sampler=WeightedRandomSampler(weights, 50)))
    assert set(data.read) <= set(range(10))
    x = data.x
    assert torch.equal(student(x, DataLoader(Stream(x), 10)), student(x, DataLoader(TensorDataset(x), 10)))


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from morphlightning import layers
folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=world)
torch.manual_seed(0)
x, y = torch.rand(37, 1, 6, 6), torch.rand(37, 4)  # 37 samples: shares of 19 and 18
model = nn.Sequential(
    layers.Dilation2d(1, 3, 3, initializer="prototype"),
    nn.Flatten(),
    layers.DilationErosion(108, 8, initializer="prototype"),
    layers.Dilation(16, 4, initializer={"name": "residual", "quantile": 0.1}),
)
torch.manual_seed(rank)  # the seed of process 0 counts
layers.initialize(model, DataLoader(TensorDataset(x, y), 5))
single = layers.Erosion(36, 4, initializer="residual")
layers.initialize(nn.Sequential(nn.Flatten(), single), DataLoader(TensorDataset(x[:1], y[:1]), 5))  # none for rank 1
torch.save([model.state_dict(), single.state_dict()], f"{folder}/{world}-{rank}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    both = [subprocess.Popen([sys.executable, str(script), str(tmp_path), rank, "2"]) for rank in "01"]
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), "0", "1"])
    runpy.run_path(str(script))
    assert [process.wait(120) for process in both] == [0, 0]
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for other in two:
        for expected, seen in zip(one, other, strict=True):
            assert expected.keys() == seen.keys()
            assert [name for name in expected if not torch.equal(expected[name], seen[name])] == []


# ------------------------------------------------------------------------------------------------ saved, refused
def test_what_was_learned_is_not_learned_again_after_loading() -> None:
    layer, x = layers.Dilation(5, 4, initializer="prototype"), seeded(20, 5)
    waiting = copy.deepcopy(layer.state_dict())
    initialize(layer, [x])
    loaded = layers.Dilation(5, 4, initializer="prototype")
    loaded.load_state_dict(layer.state_dict())
    assert not loaded.awaits_data
    loaded.load_state_dict(waiting)
    assert loaded.awaits_data
    old = layer.state_dict()
    del old["initialized"]  # as checkpoints were before there were initializers that learn
    loaded.load_state_dict(old)
    assert not loaded.awaits_data
    assert "initialized" not in old
    assert initialize(loaded, [x]) == []
    loaded.reset_parameters()
    assert loaded.awaits_data
    assert not loaded.initialized


@pytest.mark.parametrize("kind", [layers.Dilation, layers.SoftDilation])
def test_training_without_data_is_refused(kind: type[nn.Module]) -> None:
    layer, x = kind(5, 4, initializer="residual"), seeded(20, 5)
    with pytest.raises(ConfigError, match=r"Dilation: initializer Residual\(.*\) waits for data; call .*initialize"):
        layer(x)
    with torch.no_grad():
        assert layer(x).isfinite().all()
    assert layer.eval()(x).isfinite().all()
    initialize(layer, [(x, seeded(20, 4))])
    layer.train()(x).sum().backward()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda how: layers.Opening(4, 3, initializer=how), "meets is no single maximum"),
        (lambda how: layers.Opening2d(4, initializer=how), "an opening meets"),
        (lambda how: layers.TopHat1d(4, initializer=how), "a tophat meets"),
        (lambda how: layers.Dilation2d(4, 3, merge="sum", initializer=how), "sums of maxima"),
    ],
)
@pytest.mark.parametrize("initializer", ["residual", "prototype"])
def test_layers_that_are_no_single_maximum_are_refused(build: Any, message: str, initializer: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(initializer)


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self, initializer: str) -> None:
        super().__init__()
        self.layer = layers.Dilation(5, 5, initializer=initializer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.layer(x))
        return y


X, Y = seeded(20, 5), seeded(20, 3)


@pytest.mark.parametrize(
    ("batches", "kind", "message"),
    [
        ([], DataError, "no batch to initialize from"),
        ([X], DataError, "layer '0' learns from pairs, but the batches hold no targets"),
        ([(X,)], DataError, "hold no targets"),
        ([(X, Y[:, :2])], ShapeError, r"layer '0' gives \(20, 3\), its targets are torch.float32 of shape \(20, 2\)"),
        ([(X, Y.long())], ShapeError, "expected floating-point targets of that shape, or classes"),
        ([(X, torch.full((20,), 3))], DataError, "has 3 units, the targets hold classes from 3 to 3"),
        ([(X, Y / 0)], DataError, "should give values that are NaN or infinite"),
        ([(X.masked_fill(X > 0.9, math.nan), Y)], DataError, "receives values that are NaN or infinite"),
        ([({"image": X}, Y)], ConfigError, "got dict first"),
    ],
)
def test_bad_data(batches: list[Any], kind: type[Exception], message: str) -> None:
    model = nn.Sequential(layers.Dilation(5, 3, initializer="residual"))
    with pytest.raises(kind, match=message):
        initialize(model, batches)
    assert model[0].awaits_data


def test_bad_modules() -> None:
    hidden = nn.Sequential(layers.Dilation(5, 3, initializer="residual"), nn.Linear(3, 3))
    with pytest.raises(ConfigError, match=r"layer '0' learns from pairs \(Residual\), but its output"):
        initialize(hidden, [(X, Y)])
    with pytest.raises(ConfigError, match="calls it 2 times for one batch"):
        initialize(Twice("residual"), [(X, X)])
    assert initialize(Twice("prototype"), [X]) == ["layer"]
    unused = Twice("prototype")
    unused.other = layers.Dilation(5, 5, initializer="prototype")
    with pytest.raises(ConfigError, match="the initializers of other ask for data, but the module does not call"):
        initialize(unused, [X])
    used_up = nn.Sequential(layers.Dilation(5, 3, initializer={"name": "residual", "quantile": 0.1}))
    with pytest.raises(ConfigError, match="a list_iterator can be read only once"):
        initialize(used_up, iter([(X, Y), (X, Y)]))
