"""Touch counts and sample counts, and the heuristics that read them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from morphlightning import apply_update_heuristics, layers
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Heuristic
from morphlightning.ops.statistics import gap_histogram

COUNTED = "count_normalized"


def statistics(layer: nn.Module) -> dict[str, Tensor]:
    return next(iter(layers.reduce_statistics(layer).values()))


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def dense_touches(x: Tensor, w: Tensor, gy: Tensor) -> Tensor:
    """How often each weight won a row that had a message."""
    count = torch.zeros_like(w)
    for b, i in (gy != 0).nonzero().tolist():
        count[i, (x[b] + w[i]).argmax()] += 1
    return count


@pytest.mark.parametrize("sign", [1, -1])
def test_dense_counts_over_two_micro_batches(sign: int) -> None:
    layer = (layers.Dilation if sign > 0 else layers.Erosion)(5, 4, heuristic=COUNTED)
    expected = torch.zeros(4, 5)
    for seed in (1, 2):
        x, gy = torch.randn(6, 5), integers(6, 4, seed=seed)
        layer(x).backward(gy)
        expected += dense_touches(sign * x, layer.weight.detach(), gy)
    seen = statistics(layer)
    assert torch.equal(seen["count"], expected.double())
    assert seen["samples"] == 12
    apply_update_heuristics(layer)
    assert layer.site.ghosts.touches.grad is None
    with torch.no_grad():
        layer.weight.sub_(0.1 * layer.weight.grad)
    layer(torch.randn(3, 5)).sum().backward()
    assert statistics(layer)["samples"] == 3


def test_counts_of_ties_follow_the_rule() -> None:
    """Each weight that receives something counts."""
    for derivative, gy, expected in [
        ("first", 1.0, [1.0, 0.0, 0.0]),
        ("uniform", 1.0, [1.0, 1.0, 0.0]),
        ("bouligand", 1.0, [1.0, 1.0, 0.0]),
        ("bouligand", -1.0, [1.0, 0.0, 0.0]),
        ("all", 0.0, [0.0, 0.0, 0.0]),
    ]:
        layer = layers.Dilation(3, 1, derivative=derivative, heuristic=COUNTED, initializer="zeros")
        layer(torch.tensor([[0.0, 0.0, -1.0]])).backward(torch.tensor([[gy]]))
        assert statistics(layer)["count"].tolist() == [expected]


@pytest.mark.parametrize("sign", [1, -1])
def test_windowed_counts_are_numbers_of_positions(sign: int) -> None:
    layer = (layers.Dilation2d if sign > 0 else layers.Erosion2d)(2, 3, (3, 2), stride=2, heuristic=COUNTED)
    x = torch.randn(2, 2, 5, 6)
    y = layer(x)
    gy = integers(*y.shape)
    y.backward(gy)
    # the gradient of the sum of the outputs that have a message counts winners one by one
    plain = (layers.Dilation2d if sign > 0 else layers.Erosion2d)(2, 3, (3, 2), stride=2)
    plain.load_state_dict(layer.state_dict())
    plain(x).backward((gy != 0).float())
    assert torch.equal(statistics(layer)["count"], sign * plain.weight.grad.double())
    assert statistics(layer)["count"].sum() == (gy != 0).sum()


def test_summed_channels_and_pooling() -> None:
    layer = layers.Dilation2d(4, 6, 3, groups=2, merge="sum", heuristic=COUNTED)
    y = layer(torch.randn(3, 4, 5, 5))
    y.sum().backward()
    count = statistics(layer)["count"]
    assert torch.equal(count.sum((2, 3)), torch.full((6, 2), 75.0, dtype=torch.float64))
    assert torch.equal(count, layer.weight.grad.double())
    pool = layers.MorphPool2d(4, 2, heuristic=COUNTED)
    pool(torch.randn(3, 4, 6, 6)).sum().backward()
    assert torch.equal(statistics(pool)["count"], pool.weight.grad.double())


def test_tied_stages_count_both_but_a_sample_once() -> None:
    """The second stage of an opening reads the same weights, transposed."""
    layer = layers.Opening(5, 4, heuristic=COUNTED)
    x = torch.randn(6, 5)
    layer(x).sum().backward()
    w = layer.weight.detach()
    eroded = (x[:, None] - w).amin(-1)
    expected = torch.zeros(4, 5)
    for b in range(6):
        chosen = (eroded[b, :, None] + w).argmax(0)  # for each input the unit that it is dilated from
        expected[chosen, torch.arange(5)] += 1
        for i in chosen.unique():  # units with a message, whatever the number of inputs that send one
            expected[i, (x[b] - w[i]).argmin()] += 1
    seen = statistics(layer)
    assert seen["samples"] == 6
    assert torch.equal(seen["count"], expected.double())


def test_only_what_was_differentiated_counts() -> None:
    layer, x = layers.Dilation(5, 4, heuristic=COUNTED), torch.randn(6, 5, requires_grad=True)
    layer(x)  # a pass whose output is thrown away
    with torch.no_grad():
        layer(x)
    layer.eval()
    layer(x).sum().backward()
    layer.train()
    assert statistics(layer)["samples"] == 0
    layer.site.clear()
    for reentrant in (True, False):
        layer.zero_grad()
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
        assert layer.site.tally.grad == 6
        assert layer.site.ghosts.touches.grad.sum() == 24
        layer.site.clear()


def gaps_of(*scores: Tensor) -> Tensor:
    """The histogram of rows with these scores, candidates last."""
    best = [row.flatten(0, -2).topk(2).values for row in scores]
    gap = torch.cat([top[:, 0] - top[:, 1] for top in best])
    return gap_histogram(torch.ones_like(gap), torch.zeros_like(gap), gap)


def reading_gaps(layer: layers.MorphLayer) -> layers.MorphLayer:
    layer.site.read(frozenset({"gaps"}))
    return layer


@pytest.mark.parametrize("derivative", ["first", "bouligand"])
@pytest.mark.parametrize("heuristic", ["plain", COUNTED])
def test_dense_gaps_over_two_micro_batches(derivative: str, heuristic: str) -> None:
    for sign, kind in ((1, layers.Dilation), (-1, layers.Erosion)):
        layer = reading_gaps(kind(5, 4, derivative=derivative, heuristic=heuristic))
        parts = torch.randn(2, 6, 5)
        for x in parts:
            layer(x).sum().backward()
        w = layer.weight.detach()
        seen = statistics(layer)
        assert torch.equal(seen["gaps"], sum(gaps_of(sign * x[:, None] + w) for x in parts))
        assert seen["samples"] == 12
        assert ("count" in seen) == (heuristic == COUNTED)


def test_gaps_are_those_of_rows_with_a_message() -> None:
    layer, x = reading_gaps(layers.Dilation(5, 4)), torch.randn(6, 5)
    gy = integers(6, 4)
    layer(x).backward(gy)
    scores = (x[:, None] + layer.weight.detach())[gy != 0]
    assert torch.equal(statistics(layer)["gaps"], gaps_of(scores))


def test_gaps_of_both_stages_of_a_tied_layer() -> None:
    layer, x = reading_gaps(layers.Closing(5, 4)), torch.randn(6, 5)
    layer(x).backward(torch.ones(6, 5))
    w = layer.weight.detach()
    first, second = x[:, None] + w, -(x[:, None] + w).amax(-1)[:, None] + w.t()
    sent = torch.zeros(6, 4, dtype=torch.bool)  # units that some output took its value from
    sent.scatter_(1, second.argmax(-1), True)
    assert torch.equal(statistics(layer)["gaps"], gaps_of(first[sent], second))


def test_gaps_of_windows_and_summed_channels() -> None:
    x = torch.randn(2, 4, 5, 6)
    taps = nn.functional.unfold(x, 3).view(2, 4, 9, -1).transpose(2, 3)[:, :, None]  # samples, channels, out, place
    for merge in ("max", "sum"):
        layer = reading_gaps(layers.Erosion2d(4, 3, 3, padding="valid", merge=merge))
        layer(x).sum().backward()
        scores = -taps + layer.weight.detach().transpose(0, 1).flatten(2)[:, :, None]
        if merge == "max":  # all channels compete
            scores = scores.permute(0, 2, 3, 1, 4).flatten(3)
        assert torch.equal(statistics(layer)["gaps"], gaps_of(scores))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gaps_under_checkpointing(reentrant: bool) -> None:
    layer, x = reading_gaps(layers.Dilation(5, 4)), torch.randn(6, 5, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(statistics(layer)["gaps"], gaps_of(x.detach()[:, None] + layer.weight.detach()))


@pytest.mark.parametrize("derivative", ["first", "uniform"])
@pytest.mark.parametrize(
    "make", [lambda r: layers.Opening(5, 4, derivative=r), lambda r: layers.Opening2d(2, 3, derivative=r)]
)
def test_compiled_gaps(make, derivative: str) -> None:
    layer = reading_gaps(make(derivative))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, seen = torch.randn(3, 5) if layer.weight.ndim == 2 else torch.randn(3, 2, 4, 5), []
    for module in (layer, compiled):
        for _ in range(2):
            module(x).sum().backward()
        seen.append(statistics(layer)["gaps"])
        layer.site.clear()
    assert seen[0].sum() > 0
    assert torch.equal(*seen)


def test_gaps_beside_per_sample_gradients() -> None:
    layer, x = reading_gaps(layers.Dilation(5, 4)), torch.randn(6, 5)
    parameters = {"weight": layer.weight.detach()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x[None],)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    layer(x).sum().backward()
    torch.testing.assert_close(per_sample.sum(0), layer.weight.grad)


def test_gaps_of_half_precision_are_those_of_float32_scores() -> None:
    layer, x = reading_gaps(layers.Dilation(5, 4).bfloat16()), torch.randn(6, 5).bfloat16()
    layer(x).sum().backward()
    assert torch.equal(statistics(layer)["gaps"], gaps_of(x.float()[:, None] + layer.weight.detach().float()))


def test_statistics_of_a_step_stay_for_the_optimizer() -> None:
    layer = layers.Dilation(5, 4)
    layer.site.read(frozenset({"count", "samples"}))
    with pytest.raises(ConfigError, match=r"call morphlightning.apply_update_heuristics\(model, optimizer\) between"):
        layer.site.of_step()
    layer(torch.randn(3, 5)).sum().backward()
    apply_update_heuristics(layer)
    kept = layer.site.of_step()
    assert kept["samples"] == 3
    assert kept["count"].sum() == 12
    layer(torch.randn(2, 5)).sum().backward()
    with pytest.raises(ConfigError, match="not summed up for this step"):
        layer.site.of_step()
    apply_update_heuristics(layer)
    assert layer.site.of_step()["samples"] == 2


def test_heuristics_may_ask_for_the_rate_of_their_weight() -> None:
    @dataclass(frozen=True)
    class Rate(Heuristic):
        """The rate in place of the gradient."""

        stage: ClassVar[str] = "update"
        needs: ClassVar[frozenset[str]] = frozenset({"lr"})

        def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
            return torch.full_like(grad, float(statistics.get("lr", -1)))

    model = nn.Sequential(layers.Dilation(5, 4, heuristic=Rate()), layers.Erosion(4, 2, heuristic=Rate()))
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters(), "lr": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for given, expected in ((optimizer, [0.5, 0.25]), (None, [-1.0, -1.0])):
        model(torch.randn(3, 5)).sum().backward()
        apply_update_heuristics(model, given)
        assert [layer.weight.grad.unique().item() for layer in model] == expected


def test_count_normalized_is_a_mean_over_touches() -> None:
    layer = layers.Dilation(5, 4, heuristic=COUNTED)
    x, target = torch.randn(32, 5), torch.randn(32, 4)
    ((layer(x) - target) ** 2).sum(1).mean().backward()
    scores = x[:, None] + layer.weight.detach()
    won = torch.nn.functional.one_hot(scores.argmax(-1), 5).bool()
    residual = 2 * (scores.amax(-1) - target)[..., None] * won
    expected = residual.sum(0) / won.sum(0).clamp_min(1)
    apply_update_heuristics(layer)
    torch.testing.assert_close(layer.weight.grad, expected)


@dataclass(frozen=True)
class Double(Heuristic):
    """Twice the gradient."""

    stage: ClassVar[str] = "update"

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        return 2 * grad


@dataclass(frozen=True)
class AddOne(Heuristic):
    """The gradient plus one."""

    stage: ClassVar[str] = "update"

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        return grad + 1


def test_updates_act_in_the_order_written() -> None:
    for order, expected in (([Double(), AddOne()], 7.0), ([AddOne(), Double()], 8.0)):
        layer = layers.Dilation(1, 1, heuristic=order)
        layer(torch.zeros(3, 1)).sum().backward()
        apply_update_heuristics(layer)
        assert layer.weight.grad.item() == expected


@pytest.mark.parametrize("heuristic", [COUNTED, Double()])
def test_a_forgotten_application_raises(heuristic) -> None:
    layer = layers.Dilation(5, 4, heuristic=heuristic)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.randn(3, 5)).sum().backward()
    layer(torch.randn(3, 5)).sum().backward()  # a second micro-batch is fine
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ConfigError, match=r"never applied: call morphlightning.apply_update_heuristics\(model\)"):
        layer(torch.randn(3, 5))


def test_an_application_in_each_step_is_enough() -> None:
    model = nn.Sequential(layers.Dilation(5, 4, heuristic=COUNTED), nn.ReLU(), layers.Erosion(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 5)).sum().backward()
        apply_update_heuristics(model)
        optimizer.step()
    model.load_state_dict(model.state_dict())
    model(torch.randn(3, 5))


def test_nobody_reads_nobody_pays() -> None:
    layer = layers.Dilation(5, 4)
    assert layer.site.ghosts.touches is None
    layer(torch.randn(3, 5)).sum().backward()
    assert layer.site.tally.grad is None
    assert layers.reduce_statistics(layer) == {}
    layer.site.read(frozenset({"count", "samples"}))
    layer(torch.randn(3, 5)).sum().backward()
    assert statistics(layer)["count"].sum() == 12
    assert {name for name, _ in layer.named_parameters()} == {"weight"}
    assert set(layer.state_dict()) == {"weight", "mask", "initialized"}


def test_layers_without_a_gradient_are_left_alone() -> None:
    model = nn.ModuleList([layers.Dilation(5, 4, heuristic=COUNTED), layers.Dilation(5, 4, heuristic=COUNTED)])
    model[0](torch.randn(3, 5)).sum().backward()
    apply_update_heuristics(model)
    assert model[1].weight.grad is None
    assert model[0].weight.grad.isfinite().all()


SCRIPT = """
import sys, torch, torch.distributed as dist
from torch import nn
from morphlightning import apply_update_heuristics
from morphlightning.layers import Dilation, Erosion
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
draw = torch.Generator().manual_seed(5)
x, t = torch.randint(0, 3, (64, 16), generator=draw).double(), torch.rand(64, 8, generator=draw)
rules = dict(derivative={"name": "bouligand", "eps": 0.02}, heuristic="count_normalized", generator=draw)
model = nn.Sequential(Dilation(16, 16, **rules), Erosion(16, 8, **rules))
run = model
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=world)
    run = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
for _ in range(10):
    optimizer.zero_grad()
    for part in range(rank, 2, world):
        loss = ((run(x[part::2]) - t[part::2]) ** 2).sum(1).mean()
        (loss * world / 2).backward()
    apply_update_heuristics(model)
    optimizer.step()
torch.save([p.detach() for p in model.parameters()], f"{folder}/{world}_{rank}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_equal_two_micro_batches(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)

    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "train.py"), str(rank), str(world), str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for process in [start(0, 1), start(0, 2), start(1, 2)]:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(b, c)
        assert a.min() < -0.01  # training moved them away from U(0, 0.1)
