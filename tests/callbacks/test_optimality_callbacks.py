"""The certificate of global optimality and growing networks, in real fits."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from morphlightning_plugins.diagnostics import GlobalOptimalityCertificate
from morphlightning_plugins.regularizers import L1, MatchedDecay
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.bregman import BregmanLoss
from morphlightning.callbacks import GrowSubnetwork
from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality import Factor, GainDilation, Objective, ParallelSum, certify_optimality
from morphlightning.interfaces import RegularizerContext
from morphlightning.models import LiftedModule

N, WEIGHT = 24, 0.02
SCRIPT = Path(__file__).with_name("fit_optimality.py")


def samples() -> TensorDataset:
    x = torch.linspace(-2, 2, N)
    return TensorDataset(torch.stack([x, torch.zeros(N)], 1), (2.2 * x).sin()[:, None])


def whole(batch_size: int = N, **options: Any) -> DataLoader[Any]:
    return DataLoader(samples(), batch_size=batch_size, **options)


def model(count: int = 1, capacity: int = 6, **settings: Any) -> LiftedModule:
    network = ParallelSum(GainDilation(2), count, capacity, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {
        "loss": "squared_error",
        "optimizer": {"name": "adam", "lr": 0.02},
        "regularizers": [{"name": "matched_decay", "weight": WEIGHT}],
    }
    return LiftedModule(network, **given | settings)


def trainer(folder: Path, epochs: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **{"enable_checkpointing": False} | options,
    )


def certificate(**settings: Any) -> GlobalOptimalityCertificate:
    return GlobalOptimalityCertificate(**{"starts": 3, "steps": 15} | settings)


def test_it_logs_what_is_certified(tmp_path: Path) -> None:
    callback = certificate(every_n_epochs=5)
    fit = trainer(tmp_path, 10, callback)
    fitted = model()
    fit.fit(fitted, whole(), whole())
    logged = {k.rpartition("/")[2]: float(v) for k, v in fit.callback_metrics.items() if "optimality_certificate" in k}
    x, y = samples().tensors
    report = certify_optimality(Objective(fitted.network, fitted.data_loss, x, y, WEIGHT), callback.search)
    assert logged["objective"] == pytest.approx(report.objective, rel=1e-6)
    assert logged["gap_certified"] == pytest.approx(report.gap, rel=1e-5)
    assert logged["polar_upper"] == pytest.approx(report.polar_upper, rel=1e-5)
    assert logged["verdict"] == -1
    assert "gap_estimated" not in logged
    assert [round(one["epoch"]) for one in callback.history] == [4, 9]
    assert callback.report.direction


def test_without_an_upper_bound_nothing_is_called_certified(tmp_path: Path) -> None:
    from morphlightning.guarantees.optimality import Gain, HomogeneousNetwork
    from morphlightning.layers import Dilation, Erosion

    deep = HomogeneousNetwork(Gain(nn.Sequential(Dilation(2, 3), Erosion(3, 1))), (2,), 1)
    fit = trainer(tmp_path, 1, certificate())
    fitted = LiftedModule(ParallelSum(deep, 2), optimizer="adam", regularizers=[MatchedDecay(WEIGHT)])
    fit.fit(fitted, whole(), whole())
    keys = {key.rpartition("/")[2] for key in fit.callback_metrics if "optimality_certificate" in key}
    assert "gap_estimated" in keys
    assert not any("certified" in key or "upper" in key for key in keys)


def test_it_changes_no_bit_of_training(tmp_path: Path) -> None:
    plain, watched = model(), model()
    states = []
    for fitted, callbacks in ((plain, ()), (watched, (certificate(),))):
        torch.manual_seed(0)
        trainer(tmp_path, 3, *callbacks).fit(fitted, whole(shuffle=True), whole())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])


def refuse(tmp_path: Path, match: str, fitted: LiftedModule | None = None, loader: Any = None, **settings: Any) -> None:
    fit = trainer(tmp_path, 1, certificate(**settings))
    with pytest.raises(ConfigError, match=match):
        fit.fit(fitted or model(), whole() if loader is None else loader, whole())


def test_it_refuses_what_it_cannot_certify(tmp_path: Path) -> None:
    refuse(tmp_path, r"batches of 8 samples of a dataset of 24; .* minibatches say nothing", loader=whole(8))
    half = whole(N, sampler=torch.utils.data.SubsetRandomSampler(range(12)))
    refuse(tmp_path, "sees 12 samples of a dataset of 24", loader=half)
    refuse(tmp_path, "several batches", **{"loader": [(torch.zeros(2, 2), torch.zeros(2, 1))] * 2})
    refuse(tmp_path, r"weight=0\.1 was asked for, the model's matched_decay has weight 0\.02", weight=0.1)
    refuse(tmp_path, r"degree=1 was asked for, .* have degree 2", degree=1)
    refuse(tmp_path, "regularizers of LiftedModule are none, expected matched_decay", model(regularizers=[]))
    both = model(regularizers=[MatchedDecay(WEIGHT), L1(1e-3, "*")])
    refuse(tmp_path, "expected matched_decay once and nothing else", both)
    refuse(
        tmp_path, r"theta='norm' has degree 1, the slices have degree 2", model(regularizers=[MatchedDecay(1, "norm")])
    )
    refuse(tmp_path, r"weight_decay=0\.1", model(optimizer={"name": "adamw", "weight_decay": 0.1}))
    refuse(tmp_path, "no bound of the global optimum is known", model(loss=BregmanLoss(nn.Sigmoid())))

    behind = model()
    behind.network = nn.Sequential(behind.network, nn.ReLU())
    refuse(tmp_path, "output of LiftedModule is not that of its ParallelSum", behind)
    beside = model()
    beside.network = nn.Sequential(nn.Linear(2, 2), beside.network)
    refuse(tmp_path, r"network.0.weight, network.0.bias train beside the ParallelSum", beside)
    lonely = LiftedModule(nn.Linear(2, 1), optimizer="adam")
    refuse(tmp_path, "holds 0 ParallelSum modules", lonely)
    with pytest.raises(ConfigError, match="expected every_n_epochs >= 1"):
        GlobalOptimalityCertificate(every_n_epochs=0)


def test_minibatches_can_be_certified_on_a_subset_of_their_own(tmp_path: Path) -> None:
    subset = DataLoader(torch.utils.data.Subset(samples(), range(10)), batch_size=10)
    callback = certificate(loader=subset)
    fitted = model()
    fitted.network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Dropout(0.5), fitted.network)
    trainer(tmp_path, 1, callback).fit(fitted, whole(8), whole())
    x, y = (t[:10] for t in samples().tensors)
    inputs = fitted.network[0](x).detach()
    sum_ = fitted.network[2]
    assert callback.report.objective == pytest.approx(Objective(sum_, fitted.data_loss, inputs, y, WEIGHT).value())
    assert fitted.network[1].training


# ------------------------------------------------------------------------------------------------------ growing
def test_a_network_grows_until_nothing_pays(tmp_path: Path) -> None:
    often = DataLoader(torch.utils.data.ConcatDataset([samples()] * 40), batch_size=N)  # full batches, 40 an epoch
    grow = GrowSubnetwork(every_n_epochs=4, starts=4, steps=20, tolerance=0.05, stop=True, loader=whole())
    seen = certificate(every_n_epochs=4, loader=whole())
    fitted = model(1, 6, optimizer={"name": "adam", "lr": 0.01}, regularizers=[MatchedDecay(0.05)])
    fit = trainer(tmp_path, 40, grow, seen, check_val_every_n_epoch=4)
    fit.fit(fitted, often, whole())
    objectives = [one["objective"] for one in grow.history]
    slices = [one["slices"] for one in grow.history]
    assert fit.current_epoch < 40  # it stopped by itself
    assert slices == sorted(slices)
    assert 2 <= slices[-1] == fitted.network.count < 6
    assert all(later < earlier * 1.001 for earlier, later in pairwise(objectives))
    assert grow.history[-1]["polar_lower"] <= 1.05
    assert seen.history[0]["excess_certified"] > 0.1
    assert seen.history[-1]["excess_certified"] < 0.05


def test_zero_slices_are_pruned_and_room_is_asked_for(tmp_path: Path) -> None:
    fitted = model(3, 4)
    with torch.no_grad():
        for tensor in fitted.network.slices.values():
            tensor[1] = 0
    kept = {name: t[2].clone() for name, t in fitted.network.slices.items()}
    grow = GrowSubnetwork(every_n_epochs=1, starts=2, steps=5, tolerance=1e9)
    trainer(tmp_path, 1, grow).fit(model_with(fitted, lr=1e-12), whole(), whole())
    assert fitted.network.count == 2
    for name, tensor in fitted.network.slices.items():
        assert torch.equal(tensor[1], kept[name])
    with pytest.raises(ConfigError, match="all 3 slices are taken"):
        trainer(tmp_path, 1, GrowSubnetwork()).fit(model(3, 3), whole(), whole())
    with pytest.warns(UserWarning, match="all 2 are taken"):
        trainer(tmp_path, 2, GrowSubnetwork(every_n_epochs=1, starts=2, steps=5)).fit(model(1, 2), whole(), whole())
    with pytest.raises(ConfigError, match="expected every_n_epochs >= 1"):
        GrowSubnetwork(every_n_epochs=0)


def model_with(fitted: LiftedModule, lr: float) -> LiftedModule:
    fitted.optimizer_component = type(fitted.optimizer_component)(lr=lr)
    return fitted


def test_a_grown_network_resumes(tmp_path: Path) -> None:
    def settings() -> tuple[L.Callback, ...]:
        return GrowSubnetwork(every_n_epochs=2, starts=2, steps=5), certificate(every_n_epochs=2)

    straight = model(0, 6)
    uninterrupted = settings()
    trainer(tmp_path, 8, *uninterrupted).fit(straight, whole(), whole())
    half, path = trainer(tmp_path, 4, *settings()), tmp_path / "half.ckpt"
    half.fit(model(0, 6), whole(), whole())
    half.save_checkpoint(path)
    again, resumed = model(0, 2), settings()  # another capacity: the checkpoint's is taken
    trainer(tmp_path, 8, *resumed).fit(again, whole(), whole(), ckpt_path=path, weights_only=True)
    assert again.network.count == straight.network.count >= 3
    assert again.network.capacity == 6
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for callback, other in zip(uninterrupted, resumed, strict=True):
        assert callback.history == other.history
    loaded = LiftedModule.load_from_checkpoint(path, network=ParallelSum(GainDilation(2), 1), regularizers=[])
    assert loaded.network.count == 2


# -------------------------------------------------------------------------------------------------- matched decay
def test_matched_decay_is_the_sum_of_penalties() -> None:
    network = ParallelSum(Factor(3, 2), 2, 4, generator=torch.Generator().manual_seed(0))
    context = RegularizerContext(torch.zeros(1, 3), torch.zeros(1, 2), 0, 1)
    squares = sum(t.square().sum() for t in network.slices.values())
    decay = MatchedDecay(0.3, "half_square")
    decay.bind(network)
    torch.testing.assert_close(decay.term(nn.Sequential(network), context), 0.15 * squares)
    with pytest.raises(ConfigError, match="has no ParallelSum"):
        decay.bind(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"theta='norm' has degree 1, the slices have degree 2 .*'half_square'"):
        MatchedDecay(0.3, "norm").bind(network)
    with pytest.raises(ValueError, match="weight must be finite"):
        MatchedDecay(-1.0)
    with pytest.raises(ValueError, match="theta must be one of norm"):
        MatchedDecay(1.0, "l1")


# ---------------------------------------------------------------------------------------------------- processes
def run(folder: Path, devices: int) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(devices)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, Any] = torch.load(folder / f"optimality-{devices}.pt", weights_only=True)
    return result


@pytest.mark.slow
def test_two_processes_certify_and_grow_as_one(tmp_path: Path) -> None:
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    assert one["count"] == two["count"] >= 3
    for name, expected in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][name], expected, rtol=1e-7, atol=1e-9)
    assert len(one["certified"]) == len(two["certified"]) == 4
    for mine, theirs in zip(one["certified"] + one["grown"], two["certified"] + two["grown"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6, abs=1e-8)


def test_losses_reduce_to_numbers(tmp_path: Path) -> None:
    """The objective that is certified is the loss that is trained."""
    fitted = model(2)
    callback = certificate()
    fit = trainer(tmp_path, 1, callback)
    model_with(fitted, lr=1e-12)
    fit.fit(fitted, whole(), whole())
    trained: Tensor = fit.callback_metrics["train/loss"] + fit.callback_metrics["regularizer/matched_decay"]
    assert callback.report.objective == pytest.approx(float(trained), rel=1e-5)
