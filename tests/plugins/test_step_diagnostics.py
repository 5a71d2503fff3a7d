"""What is measured of single steps, against brute force on the scores of small networks."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning import registry
from morphlightning.bouligand import exact_radius
from morphlightning.callbacks import MessagePaths, WeightActivity
from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation, Dilation2d, Erosion, MorphLayer, Opening, apply_update_heuristics

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randint(0, 3, (24, 6), generator=DRAW).double()
TARGETS = torch.randn(24, 2, generator=DRAW, dtype=torch.float64)


class Model(L.LightningModule):
    """A network under a mean squared error, with all that it logs."""

    def __init__(self, network: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.network, self.lr = network.double(), lr
        self.logged: dict[str, list[float]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def data_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 2).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.data_loss(self(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        apply_update_heuristics(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        super().log(name, value, *args, **kwargs)
        self.logged.setdefault(name, []).append(float(value))


class Steps(Callback):
    """Copies of the module before and after each step."""

    def __init__(self) -> None:
        self.before: list[nn.Module] = []
        self.after: list[nn.Module] = []
        self.inputs: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append(copy.deepcopy(pl_module.network))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.after) < len(self.before):
            self.after.append(copy.deepcopy(pl_module.network))
            self.inputs.append(batch[0])


def fit(folder: Path, module: L.LightningModule, *callbacks: Callback, **options: Any) -> L.Trainer:
    torch.manual_seed(3)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{"max_epochs": 1, "logger": False, "enable_progress_bar": False} | options,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=6))
    return trainer


def diagnostic(name: str, **settings: Any) -> Any:
    return registry.build("diagnostics", {"name": name, "every_n_steps": 1} | settings)


def integers(layer: MorphLayer) -> MorphLayer:
    with torch.no_grad():
        layer.weight.copy_(torch.randint(0, 3, layer.weight.shape, generator=DRAW))
    return layer


def scores(layer: MorphLayer, x: Tensor) -> Tensor:
    """Candidates of all rows of a dense layer, whose largest is the output up to its sign."""
    x = -x if isinstance(layer, Erosion) else x
    return x[:, None] + layer.weight.detach()


# ------------------------------------------------------------------------------------------------------- ties
def sizes(s: Tensor, eps: float) -> Tensor:
    return (s >= s.amax(-1, keepdim=True) - eps).sum(-1).double().flatten()


def expect_ties(module: Model, layer: str, exact: list[Tensor], near: list[Tensor]) -> None:
    seen = {key.rpartition("/")[2]: v for key, v in module.logged.items() if f"/{layer}/" in key}
    assert seen == {
        "active": pytest.approx([float(n.mean()) for n in exact]),
        "near_active": pytest.approx([float(n.mean()) for n in near]),
        "tied": pytest.approx([float((n > 1).double().mean()) for n in exact]),
        "near_tied": pytest.approx([float((n > 1).double().mean()) for n in near]),
    }


def test_ties_are_those_of_all_scores(tmp_path: Path) -> None:
    module = Model(nn.Sequential(integers(Dilation(6, 5)), integers(Erosion(5, 2))), lr=0.03)
    steps = Steps()
    fit(tmp_path, module, diagnostic("tie_monitor", eps=1.0), steps)
    assert len(steps.before) == 4
    for position in (0, 1):
        found = [scores(net[position], net[:position](x)) for net, x in zip(steps.before, steps.inputs, strict=True)]
        expect_ties(module, f"network.{position}", [sizes(s, 0) for s in found], [sizes(s, 1.0) for s in found])
    assert module.logged["diagnostics/tie_monitor/network.0/tied"][0] > 0.2


def test_both_stages_of_an_opening_are_rows_of_its_layer(tmp_path: Path) -> None:
    module = Model(nn.Sequential(integers(Opening(6, 3)), nn.Linear(6, 2)), lr=0.0)
    fit(tmp_path, module, diagnostic("tie_monitor"), limit_train_batches=1)
    x, weight = INPUTS[:6], module.network[0].weight.detach()
    first = -x[:, None] + weight
    second = -first.amax(-1)[:, None] + weight.t()
    both = torch.cat([sizes(first, 0), sizes(second, 0)])
    assert module.logged["diagnostics/tie_monitor/network.0/active"] == [pytest.approx(float(both.mean()))]


class Kept(nn.Dropout):
    """Dropout that remembers how many of its inputs it kept, pass by pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.passes.append(float((y > 0).double().sum(-1).mean()))
        return y


def test_the_random_numbers_are_those_of_the_step(tmp_path: Path) -> None:
    kept = Kept()
    module = Model(nn.Sequential(kept, Dilation(6, 2, initializer="zeros")), lr=0.0)
    module.forward = lambda x: module.network(torch.ones_like(x))  # type: ignore[method-assign]
    fit(tmp_path, module, diagnostic("tie_monitor"))
    trained, replayed = kept.passes[::2], kept.passes[1::2]
    assert trained == replayed
    assert len(set(trained)) > 1
    assert module.logged["diagnostics/tie_monitor/network.1/active"] == pytest.approx(trained)  # no sample lost all


# ------------------------------------------------------------------------------------------------------ radii
def expected_radii(before: Tensor, after: Tensor) -> Tensor:
    """Of each row the first t at which a candidate that was not active overtakes those that were."""
    move = after - before
    radii = []
    for s, d in zip(before.flatten(0, -2), move.flatten(0, -2), strict=True):
        top = s.max()
        lead = max(float(d[j]) for j in range(len(s)) if s[j] == top)
        rates = [float((top - s[j]) / (d[j] - lead)) for j in range(len(s)) if s[j] < top and d[j] > lead]
        radii.append(min(rates, default=float("inf")))
    return torch.tensor(radii, dtype=torch.float64)


@pytest.mark.parametrize("lr", [0.05, 3.0])
def test_radii_are_those_of_the_scores_before_and_after(tmp_path: Path, lr: float) -> None:
    module = Model(nn.Sequential(Dilation(6, 5), nn.Sigmoid(), Erosion(5, 4), nn.Linear(4, 2)), lr)
    steps = Steps()
    fit(tmp_path, module, diagnostic("radius_monitor"), steps)
    for position in (0, 2):
        logged = {k.rpartition("/")[2]: v for k, v in module.logged.items() if f"/network.{position}/" in k}
        assert set(logged) == {"q05", "q25", "q50", "crossed"}
        for step, x in enumerate(steps.inputs):
            before, after = (net[step][:position](x) for net in (steps.before, steps.after))
            start = scores(steps.before[step][position], before.detach())
            end = scores(steps.after[step][position], after.detach())
            radii = expected_radii(start, end).sort().values
            for key, q in (("q05", 0.05), ("q25", 0.25), ("q50", 0.5)):
                wanted = min(float(radii[max(1, round(q * len(radii))) - 1]), 1e6)
                assert logged[key][step] == pytest.approx(wanted, rel=1e-6)
            overtaken = start.gather(-1, end.argmax(-1, keepdim=True))[..., 0] < start.amax(-1)
            assert logged["crossed"][step] == pytest.approx(float(overtaken.double().mean()))
    crossed = module.logged["diagnostics/radius_monitor/network.0/crossed"]
    assert max(crossed) > 0.1 if lr > 1 else max(crossed) < 0.1


def test_radii_of_a_short_step_are_those_of_the_network_along_it(tmp_path: Path) -> None:
    module, steps = Model(nn.Sequential(Dilation(6, 5), Erosion(5, 2)), 5e-4), Steps()
    fit(tmp_path, module, diagnostic("radius_monitor"), steps, limit_train_batches=1)
    old, new = dict(steps.before[0].named_parameters()), dict(steps.after[0].named_parameters())
    moves = {name: (new[name] - old[name]).detach() for name in old}
    exact = exact_radius(steps.before[0], steps.inputs[0], params=moves)
    assert exact.network > 1  # nothing crosses, and all of it is affine
    for layer, rows in exact.rows.items():
        (median,) = module.logged[f"diagnostics/radius_monitor/network.{layer}/q50"]
        assert median == pytest.approx(min(1e6, float(rows.flatten().kthvalue(rows.numel() // 2).values)), rel=1e-6)


def test_radii_of_windows_and_missing_weights(tmp_path: Path) -> None:
    layer = Dilation2d(1, 2, kernel_size=(1, 3), mask=torch.tensor([True, True, False]))
    module = Model(nn.Sequential(nn.Unflatten(1, (1, 2, 3)), layer, nn.Flatten(), nn.Linear(12, 2)), 1.0)
    steps = Steps()
    fit(tmp_path, module, diagnostic("radius_monitor"), steps, limit_train_batches=1)

    def candidates(net: Any) -> Tensor:
        padded = nn.functional.pad(INPUTS[:6].view(6, 1, 2, 3), (1, 1), value=-torch.inf).unfold(-1, 3, 1)
        return padded + net[1].effective_weight.detach().flip(-1).view(2, 1, 1, 3)

    start, end = candidates(steps.before[0]), candidates(steps.after[0])
    overtaken = start.gather(-1, end.argmax(-1, keepdim=True))[..., 0] < start.amax(-1)
    (crossed,) = module.logged["diagnostics/radius_monitor/network.1/crossed"]
    assert crossed == pytest.approx(float(overtaken.double().mean()))
    assert crossed > 0


# --------------------------------------------------------------------------------------------------- decrease
def test_decreases_are_those_of_the_loss(tmp_path: Path) -> None:
    network = nn.Sequential(nn.BatchNorm1d(6), Dilation(6, 5), nn.Linear(5, 4), Erosion(4, 2))
    module, steps = Model(network, 0.3), Steps()
    fit(tmp_path, module, diagnostic("decrease_monitor"), steps)
    predicted, actual, ratio = (module.logged[f"diagnostics/decrease_monitor/{k}"] for k in PARTS)
    for step, x in enumerate(steps.inputs):
        y = TARGETS[6 * step : 6 * step + 6]

        def loss(t: float, step: int = step, x: Tensor = x, y: Tensor = y) -> float:
            net = copy.deepcopy(steps.before[step])
            for p, new in zip(net.parameters(), steps.after[step].parameters(), strict=True):
                p.data = p.data + t * (new.data - p.data)
            return ((net(x) - y) ** 2).mean().item()

        assert actual[step] == pytest.approx(loss(0) - loss(1), abs=1e-12)
        assert predicted[step] == pytest.approx((loss(0) - loss(1e-6)) / 1e-6, rel=1e-4)
        assert ratio[step] == pytest.approx(actual[step] / predicted[step])
    assert min(abs(r - 1) for r in ratio) > 0.01  # the step is long enough to tell them apart


PARTS = ("predicted", "actual", "ratio")


@pytest.mark.parametrize(("rule", "decrease"), [("first", 0.0), ("all", 1.0)])
def test_a_tie_of_which_one_candidate_falls_brings_nothing(tmp_path: Path, rule: str, decrease: float) -> None:
    module = Model(Dilation(6, 1, initializer="zeros", derivative=rule), lr=1.0)
    module.forward = lambda x: module.network(torch.zeros_like(x))  # type: ignore[method-assign]
    module.data_loss = lambda output, target: output.mean()  # type: ignore[method-assign]
    fit(tmp_path, module, diagnostic("decrease_monitor"), limit_train_batches=1)
    logged = {k.rpartition("/")[2]: v[0] for k, v in module.logged.items()}
    expected = {"predicted": decrease, "actual": decrease} | ({"ratio": 1.0} if decrease else {})
    assert logged == pytest.approx(expected, abs=1e-12)


def test_of_several_micro_batches_the_last_one_is_measured(tmp_path: Path) -> None:
    module = Model(Dilation(6, 2), 0.3)
    steps = Steps()
    fit(tmp_path, module, diagnostic("decrease_monitor"), steps, accumulate_grad_batches=2)
    actual = module.logged["diagnostics/decrease_monitor/actual"]
    assert len(actual) == 2
    x, y = INPUTS[6:12], TARGETS[6:12]
    losses = [((net(x) - y) ** 2).mean().item() for net in (steps.before[0], steps.after[0])]
    assert actual[0] == pytest.approx(losses[0] - losses[1], abs=1e-12)


def test_a_module_without_a_loss_is_refused(tmp_path: Path) -> None:
    module = Model(Dilation(6, 2))
    module.data_loss = None  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError, match=r"decrease_monitor: Model has no data_loss\(output, target\)"):
        fit(tmp_path, module, diagnostic("decrease_monitor"))


# ------------------------------------------------------------------------------------------------- all of them
def no_forward(x: Tensor) -> Tensor:
    raise NotImplementedError("Module [Model] is missing the required forward function")


@pytest.mark.parametrize("name", ["tie_monitor", "radius_monitor"])
@pytest.mark.parametrize(
    ("network", "forward", "message"),
    [
        (nn.Linear(6, 2), None, "Model calls no max-plus operator"),
        (Dilation(6, 2), no_forward, "missing the required forward"),
    ],
)
def test_what_cannot_be_measured_is_one_warning(
    tmp_path: Path, name: str, network: nn.Module, forward: Callable[[Tensor], Tensor] | None, message: str
) -> None:
    module = Model(copy.deepcopy(network))
    if forward is not None:
        module.forward = forward  # type: ignore[method-assign]
        module.training_step = lambda batch, batch_idx: module.network(batch[0]).sum()  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(tmp_path, module, diagnostic(name))
    told = [str(w.message) for w in caught if "turned off" in str(w.message)]
    assert len(told) == 1
    assert told[0].startswith(f"{name} is turned off for the rest of this fit")
    assert message in told[0]
    assert trainer.global_step == 4
    assert not module.logged


def test_a_curved_network_without_a_rule_turns_the_prediction_off(tmp_path: Path) -> None:
    class Jump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.round()

    module = Model(nn.Sequential(Dilation(6, 2), Jump()))
    with pytest.warns(UserWarning, match=r"decrease_monitor is turned off .*round"):
        trainer = fit(tmp_path, module, diagnostic("decrease_monitor"))
    assert trainer.global_step == 4


NAMES = ["gradient_density", "tie_monitor", "radius_monitor", "decrease_monitor"]


def test_nothing_of_training_changes(tmp_path: Path) -> None:
    results = []
    for watched in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        network = nn.Sequential(nn.BatchNorm1d(6), Dilation(6, 5), nn.Dropout(0.3), Erosion(5, 4), nn.Linear(4, 2))
        module = Model(network)
        callbacks = [diagnostic(name) for name in NAMES] if watched else []
        callbacks += [WeightActivity(1), MessagePaths(1)] if watched else []
        fit(tmp_path, module, *callbacks, max_epochs=2)
        states = torch.get_rng_state(), torch.tensor(np.random.get_state()[1]), torch.tensor(random.getstate()[1])
        results.append([*module.state_dict().values(), *states, torch.tensor(module.training)])
        assert bool(module.logged) == watched
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_most_telling_values_go_to_the_progress_bar_on_request(tmp_path: Path) -> None:
    shown = []
    for prog_bar in (False, True):
        module = Model(nn.Sequential(Dilation(6, 5), nn.Linear(5, 2)))
        trainer = fit(tmp_path, module, *(diagnostic(name, prog_bar=prog_bar) for name in NAMES))
        shown.append({k.removeprefix("diagnostics/") for k in trainer.progress_bar_metrics if "diagnostics" in k})
    layer = "network.0"
    telling = {f"gradient_density/{layer}", f"tie_monitor/{layer}/near_active", f"radius_monitor/{layer}/crossed"}
    assert shown == [set(), telling | {"decrease_monitor/ratio"}]


def test_a_logger_gets_each_value_at_the_step_that_was_measured(tmp_path: Path) -> None:
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    module = Model(Dilation(6, 2))
    fit(tmp_path, module, diagnostic("decrease_monitor", every_n_steps=2), logger=logger, log_every_n_steps=2)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    table = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    seen = [(int(row["step"]), float(row["diagnostics/decrease_monitor/actual"])) for row in table]
    assert seen == list(zip([1, 3], module.logged["diagnostics/decrease_monitor/actual"], strict=True))
