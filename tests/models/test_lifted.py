"""Lifted training as a user meets it: a Trainer, data, callbacks, loggers, precision, and what is refused."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import morphlightning as ml
from morphlightning import registry
from morphlightning.bregman import BregmanLoss
from morphlightning.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    NotSupportedError,
    PluginError,
    TrainingWarning,
)
from morphlightning.interfaces import TrainerFacts

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Make = Callable[..., L.Trainer]
MODES = ("full", "incremental", "memoryless", "ema")
LIFTED: list[dict[str, Any]] = [{"name": "lifted", "mode": mode} for mode in MODES]
OPTIMIZERS: list[Any] = ["badmm", *LIFTED]
FULL = ["badmm", "lifted"]


def names(spec: Any) -> str:
    named: str = spec if isinstance(spec, str) else spec.get("mode", spec["name"])
    return named


def denoiser(optimizer: Any, **settings: Any) -> ml.LiftedModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (1, 8, 8)))
    return ml.LiftedModule(net, optimizer=optimizer, **{"data_range": 1.0} | settings)


def digits(optimizer: Any, **settings: Any) -> ml.data.Digits:
    """Batches that suit the loop: all samples at once, or parts of them."""
    by_batch = isinstance(optimizer, dict) and optimizer.get("mode", "full") != "full"
    fixed = {"task": "denoising", "fixed_noise": True, "noise": 0.2, "train_size": 256}
    return ml.data.Digits(**fixed | {"batch_size": 64 if by_batch else 256} | settings)


def pairs(n: int = 90, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64)
    return x.to(dtype), (x @ torch.randn(5, 2, generator=draw, dtype=torch.float64)).relu().to(dtype)


def regressor(optimizer: Any, dtype: torch.dtype = torch.float32, **settings: Any) -> ml.LiftedModule:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).to(dtype)
    spec = {"name": optimizer} if isinstance(optimizer, str) else optimizer
    ridge = {"ridge": 0.1} if spec["name"] in FULL else {}
    return ml.LiftedModule(net, optimizer=ridge | spec, **settings)


def batch_size(optimizer: Any) -> int:
    return 90 if names(optimizer) in ("badmm", "lifted", "full") else 30


# --------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=names)
def test_every_loop_denoises_digits(make_trainer: Make, optimizer: Any) -> None:
    model, data = denoiser(optimizer), digits(optimizer, passes=1 if names(optimizer) in ("memoryless", "ema") else 5)
    trainer = make_trainer(max_epochs=5, limit_val_batches=1.0)
    (before,) = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    figures = {"badmm": {"objective", "gap/1", "primal_residual"}, "full": {"objective", "gap/1"}}
    assert {"loss", *figures.get(names(optimizer), ())} <= {name[6:] for name in trainer.callback_metrics}
    (after,) = trainer.validate(model, data, verbose=False)
    assert not model.automatic_optimization
    assert after["val/loss"] < 0.55 * before["val/loss"]
    assert after["val/psnr"] > before["val/psnr"] + 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=names)
def test_every_loop_trains_on_tensors(make_trainer: Make, optimizer: Any) -> None:
    model, (x, y) = regressor(optimizer), pairs()
    before = model.data_loss(model(x), y)
    data = ml.data.indexed((x, y), batch_size=batch_size(optimizer), shuffle=True)
    make_trainer(max_epochs=40).fit(model, data)
    assert model.data_loss(model(x), y) < 0.3 * before


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("size", [90, 20])  # in one piece, and in five of which the last is smaller
@pytest.mark.parametrize("optimizer", FULL)
def test_global_step_counts_passes(make_trainer: Make, optimizer: str, size: int, passes: int) -> None:
    seen = Steps()
    trainer = make_trainer(max_epochs=3, callbacks=[seen])
    trainer.fit(regressor(optimizer), ml.data.indexed(pairs(), size, passes=passes, shuffle=True))
    pieces = -(-90 // size)
    assert trainer.global_step == 3 * passes
    assert seen.after == [(batch + 1) // pieces for batch in range(3 * passes * pieces)]


class Steps(Callback):
    """Global step after each batch."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.after.append(trainer.global_step)


@pytest.mark.parametrize("mode", MODES[1:])
def test_global_step_counts_batches_where_an_iteration_is_a_batch(make_trainer: Make, mode: str) -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.fit(regressor({"name": "lifted", "mode": mode}), ml.data.indexed(pairs(), 20, shuffle=True))
    assert trainer.global_step == 10


@pytest.mark.parametrize("size", [90, 20])
def test_max_steps_counts_iterations(make_trainer: Make, size: int) -> None:
    model = regressor("badmm")
    trainer = make_trainer(max_steps=7, max_epochs=-1)
    trainer.fit(model, ml.data.indexed(pairs(), size, passes=3))
    assert trainer.global_step == model.optimizer_component.method.iteration == 7


def test_a_pass_that_is_cut_short_is_an_iteration(make_trainer: Make) -> None:
    """fast_dev_run and limit_train_batches: what is there of a pass is what an iteration solves for."""
    model = regressor("badmm")
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, ml.data.indexed(pairs(), 20))
    assert trainer.global_step == 1
    x, y = pairs(dtype=torch.float64)
    for limit in (1, 2):  # other samples in the second epoch, in one piece and in two
        keep, model = Second(), regressor({"name": "badmm", "rho": 1.0}, torch.float64)
        settings = {"max_epochs": 2, "limit_train_batches": limit, "precision": "64-true"}
        trainer = make_trainer(callbacks=[keep], **settings)
        trainer.fit(model, ml.data.indexed((x, y), 20, shuffle=True))
        assert trainer.global_step == 2
        index = torch.cat(keep.indices)
        assert len(index) == 20 * limit
        kept = model.optimizer_component._store.take(index, x.device)
        assert kept is not None
        z, m, first = kept[0]["z1"], kept[0]["m1"], model.network[0]
        weight = torch.cat([first.weight, first.bias[:, None]], 1)
        a = torch.cat([x[index], torch.ones(len(index), 1, dtype=x.dtype)], 1)
        gram = a.T @ a + 0.1 * torch.eye(6, dtype=x.dtype)
        torch.testing.assert_close(weight, torch.linalg.solve(gram, a.T @ (z + m)).T, rtol=1e-9, atol=1e-9)


class Second(Callback):
    """The samples of the second epoch."""

    def __init__(self) -> None:
        self.indices: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            self.indices.append(batch[2])


def test_training_loss_is_that_of_the_network_before_the_step(make_trainer: Make) -> None:
    for size in (90, 20):
        keep, (x, y) = Losses(*pairs(dtype=torch.float64)), pairs(dtype=torch.float64)
        model = regressor({"name": "badmm", "monitor_every": 2}, torch.float64)
        make_trainer(max_epochs=6, callbacks=[keep], precision="64-true").fit(model, ml.data.indexed((x, y), size))
        assert len(keep.right) == 6
        for logged, right in zip(keep.logged, keep.right[::2], strict=True):
            assert logged == pytest.approx(right, rel=1e-9)


class Losses(Callback):
    """The loss of the forward pass before each iteration, and what is logged of it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.right: list[float] = []
        self.logged: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.right.append(pl_module.data_loss(pl_module(self.x), self.y).item())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch % 2 == 0:
            self.logged.append(float(trainer.callback_metrics["train/loss"]))
            assert {"train/loss", "train/primal_residual"} <= set(trainer.progress_bar_metrics)
            assert "train/dual_residual" not in trainer.progress_bar_metrics


# -------------------------------------------------------------------------------------------- callbacks and loggers
def test_early_stopping_on_validation(make_trainer: Make) -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    trainer = make_trainer(max_epochs=20, limit_val_batches=1.0, callbacks=[stop])
    trainer.fit(denoiser("badmm"), digits("badmm"))
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("passes", [1, 20])
def test_early_stopping_on_the_primal_residual(make_trainer: Make, passes: int) -> None:
    """Also where not each epoch measures it."""
    stop = EarlyStopping(
        "train/primal_residual", patience=1000, stopping_threshold=1e-2, check_on_train_epoch_end=True, verbose=False
    )
    trainer = make_trainer(max_epochs=1000, callbacks=[stop])
    trainer.fit(regressor("badmm"), ml.data.indexed(pairs(), passes=passes))
    assert 0 < trainer.global_step < 1000
    assert trainer.callback_metrics["train/primal_residual"] < 1e-2


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
def test_model_checkpoints(make_trainer: Make, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="val/loss", save_top_k=2, save_last=True)
    often = ModelCheckpoint(tmp_path / "often", "{step}", every_n_train_steps=3, save_top_k=-1)
    settings = {"enable_checkpointing": True, "limit_val_batches": 1.0}
    trainer = make_trainer(max_epochs=4, callbacks=[best, often], **settings)
    trainer.fit(denoiser("badmm"), digits("badmm", passes=2))
    assert sorted(path.name for path in (tmp_path / "often").iterdir()) == ["step=3.ckpt", "step=6.ckpt"]
    assert len(list((tmp_path / "best").iterdir())) == 3
    assert best.best_model_score == pytest.approx(float(min(best.best_k_models.values())))
    trainer.test(ckpt_path=best.best_model_path, datamodule=digits("badmm"), verbose=False)


def test_loggers_get_the_figures(make_trainer: Make, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    model = regressor({"name": "badmm", "monitor_every": 5})
    trainer = make_trainer(max_epochs=2, logger=loggers, log_every_n_steps=1)
    trainer.fit(model, ml.data.indexed(pairs(), passes=10))
    with (Path(loggers[0].log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    figures = {"loss", "objective", "objective_change", "primal_residual", "dual_residual", "gap/0"}
    assert figures <= {name.removeprefix("train/") for name in rows[0]}
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows}
    assert losses[0] > losses[5] > losses[10] > losses[15] == losses[19]  # the trainer repeats what was last measured
    assert list((tmp_path / "board").rglob("events*"))


def test_reconstructions_are_drawn(make_trainer: Make, tmp_path: Path) -> None:
    from morphlightning.callbacks import Reconstructions

    logger = TensorBoardLogger(tmp_path)
    trainer = make_trainer(callbacks=[Reconstructions()], logger=logger, limit_val_batches=1.0)
    trainer.fit(denoiser("badmm"), digits("badmm"))
    assert any(path.stat().st_size > 5000 for path in tmp_path.rglob("events*"))


# ----------------------------------------------------------------------------------------------------- other networks
PLAIN = {"in_shape": (1, 8, 8), "head": "linear", "loss": "cross_entropy"}


def classifier(optimizer: Any) -> ml.MorphologicalClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU())
    return ml.MorphologicalClassifier(backbone=backbone, optimizer=optimizer, **PLAIN)


@pytest.mark.parametrize("optimizer", [{"name": name, "ridge": 1.0} for name in FULL], ids=names)
def test_a_plain_classifier_is_lifted(make_trainer: Make, optimizer: Any) -> None:
    model, data = classifier(optimizer), ml.data.Digits(batch_size=2000, passes=30)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data, verbose=False)
    assert metrics["test/accuracy"] > 0.85


def test_max_plus_layers_are_refused_by_name(make_trainer: Make) -> None:
    with pytest.raises(NotSupportedError, match=r"0\.0\.pool1 \(MorphPool2d\): a max-plus layer.*morph_sgd"):
        make_trainer().fit(ml.MorphologicalClassifier((1, 8, 8), channels=(4,), optimizer="badmm"), digits("badmm"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=names)
def test_convolutions(make_trainer: Make, optimizer: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 3, padding=1))
    model, data = ml.LiftedModule(net, optimizer=optimizer), digits(optimizer)
    trainer = make_trainer(max_epochs=5, limit_val_batches=1.0)
    (before,) = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    (after,) = trainer.validate(model, data, verbose=False)
    assert after["val/loss"] < 0.3 * before["val/loss"]


def test_classes_by_a_convolution_and_a_linear_layer(make_trainer: Make) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(54, 10))
    model = ml.LiftedModule(net, "cross_entropy", {"name": "lifted", "ridge": 1.0}, num_classes=10)
    data = ml.data.Digits(batch_size=2000, passes=40)
    trainer = make_trainer(max_epochs=1, limit_val_batches=1.0)
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/accuracy"] > 0.85


def test_a_bregman_loss_of_the_last_activation(make_trainer: Make) -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    y = (x[:, :1] * x[:, 1:2] > 0).float()
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 1))
    model = ml.LiftedModule(net, BregmanLoss(nn.Sigmoid()), {"name": "lifted", "ridge": 0.01})
    make_trainer(max_epochs=3).fit(model, ml.data.indexed((x, y), passes=100))
    assert ((model(x) > 0) == (y > 0)).float().mean() > 0.8


def test_any_other_optimizer_trains_a_lifted_module(make_trainer: Make) -> None:
    model, (x, y) = regressor({"name": "adam", "lr": 0.02}), pairs()
    assert model.automatic_optimization
    assert not model.owns_samples
    before = model.data_loss(model(x), y)
    loader = DataLoader(TensorDataset(x, y), 30, shuffle=True)
    trainer = make_trainer(max_epochs=30, gradient_clip_val=1.0, accumulate_grad_batches=2)
    trainer.fit(model, loader)
    assert model.data_loss(model(x), y) < 0.3 * before
    assert "train/loss" in trainer.callback_metrics


# --------------------------------------------------------------------------------------------- weights and checkpoints
def test_a_checkpoint_holds_the_network_as_it_is(make_trainer: Make, tmp_path: Path) -> None:
    model, (x, y) = regressor("badmm"), pairs()
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, ml.data.indexed((x, y)))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"network.{name}" for name in model.network.state_dict()}
    again = ml.LiftedModule.load_from_checkpoint(tmp_path / "run.ckpt", network=regressor("badmm").network)
    assert again.hparams["optimizer"] == {"name": "badmm", "ridge": 0.1}
    assert torch.equal(again(x), model(x))
    with pytest.raises(ConfigError, match=r"load_from_checkpoint\(path, network=\.\.\.\)"):
        ml.LiftedModule.load_from_checkpoint(tmp_path / "run.ckpt")


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, *_):
        if name.split(".")[0].startswith("morphlightning"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import torch
values, saved, *exported = sys.argv[1:]
x, y = torch.load(values, weights_only=True)
assert torch.equal(torch.load(saved, weights_only=False)(x), y)
for file in exported:
    assert torch.allclose(torch.export.load(file).module()(x), y, atol=1e-6)
"""


@pytest.mark.parametrize("export", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_network_needs_nothing_of_ours(make_trainer: Make, tmp_path: Path, export: bool) -> None:
    model, (x, _) = regressor({"name": "badmm", "x_step": "mirror"}), pairs()
    make_trainer(max_epochs=3).fit(model, ml.data.indexed(pairs()))
    files = [tmp_path / name for name in ("values.pt", "network.pt", "network.pt2")[: 2 + export]]
    torch.save((x, model.network(x).detach()), files[0])
    torch.save(model.network, files[1])
    if export:
        torch.export.save(torch.export.export(model.network, (x,)), files[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


# ----------------------------------------------------------------------------------------------------------- precision
class Dtypes(Callback):
    """Dtypes of the sums over samples, of auxiliary variables and of the weights."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        loop = pl_module.optimizer_component
        self.variables = {value.dtype for value in loop._store._rows.values() if value.is_floating_point()}
        self.weights = {p.dtype for p in pl_module.parameters()}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        method = pl_module.optimizer_component.method
        if method.input_gram is not None:
            self.gram = method.input_gram.dtype

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        sums = {value.dtype for name, value in pl_module.optimizer_component.method._sums.items() if "fig" not in name}
        self.sums = sums or self.sums

    sums: set[torch.dtype] = set()  # noqa: RUF012


def fit_in(make_trainer: Make, precision: Any, optimizer: str, size: int) -> tuple[float, Dtypes]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    model, keep = ml.LiftedModule(net, optimizer={"name": optimizer, "ridge": 1.0}), Dtypes()
    make_trainer(max_epochs=20, precision=precision, callbacks=[keep]).fit(model, ml.data.indexed(pairs(), size))
    x, y = (part.double() for part in pairs())
    return model.double().data_loss(model(x), y).item(), keep


@pytest.mark.parametrize(("optimizer", "size"), [("badmm", 90), ("badmm", 20), ("lifted", 90)])
@pytest.mark.parametrize(
    ("precision", "kept", "summed", "near"),
    [
        ("64-true", torch.float64, torch.float64, 1e-4),
        ("bf16-mixed", torch.float32, torch.float32, 0.02),
        ("bf16-true", torch.bfloat16, torch.float32, 0.2),
    ],
)
def test_precisions(
    make_trainer: Make, precision: str, kept: torch.dtype, summed: torch.dtype, near: float, optimizer: str, size: int
) -> None:
    (right, _), (loss, dtypes) = (fit_in(make_trainer, each, optimizer, size) for each in ("32-true", precision))
    assert loss == pytest.approx(right, rel=near)
    assert dtypes.variables == dtypes.weights == {kept}
    assert dtypes.gram == summed
    assert dtypes.sums == ({summed} if size == 20 else set())


# ------------------------------------------------------------------------------------------------------------ refusals
FACTS = TrainerFacts("32-true", "SingleDeviceStrategy", 1, None, 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=names)
def test_what_a_trainer_may_not_ask_for(optimizer: Any) -> None:
    loop = regressor(optimizer).optimizer_component
    assert loop.refuse(FACTS) == []
    for fine in ({"precision": "bf16-mixed"}, {"strategy": "DDPStrategy", "world_size": 2}, {"gradient_clip_val": 0.0}):
        assert loop.refuse(FACTS._replace(**fine)) == []
    for asked, said in (
        ({"precision": "16-mixed"}, "'16-mixed', expected one of 32-true"),
        ({"precision": "16-true"}, "'16-true'"),
        ({"strategy": "FSDPStrategy"}, "FSDPStrategy: weights must lie whole on each process; use DDP"),
        ({"strategy": "DeepSpeedStrategy"}, "DeepSpeedStrategy"),
        ({"strategy": "ModelParallelStrategy"}, "ModelParallelStrategy"),
        ({"gradient_clip_val": 0.5}, "gradient_clip_val: there are no gradients"),
        ({"accumulate_grad_batches": 4}, "accumulate_grad_batches: sums"),
        ({"callbacks": ("GradientAccumulationScheduler",)}, "accumulate_grad_batches"),
        ({"callbacks": ("StochasticWeightAveraging",)}, "StochasticWeightAveraging"),
        ({"regularizers": ("l1",)}, "regularizers l1"),
    ):
        (reason,) = loop.refuse(FACTS._replace(**asked))
        assert said in reason


def test_all_reasons_come_at_once(make_trainer: Make) -> None:
    model = classifier("badmm")
    model.regularizers["l1"] = registry.build("regularizers", "l1")
    said = r"(?s)Badmm cannot train.*StochasticWeightAveraging.*regularizers l1"
    with pytest.raises(NotSupportedError, match=said):
        make_trainer(callbacks=[StochasticWeightAveraging(0.1)]).fit(model, digits("badmm"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gradient_clip_val": 1.0}, "gradient clipping is not supported for manual optimization"),
        ({"accumulate_grad_batches": 2}, "gradient accumulation is not supported for manual optimization"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "accumulat"),
        ({"precision": "16-true"}, "precision '16-true', expected one of 32-true"),
    ],
)
def test_the_error_is_clear_whoever_raises_it(make_trainer: Make, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        make_trainer(**settings).fit(regressor("badmm"), ml.data.indexed(pairs()))


@pytest.mark.parametrize("optimizer", ["badmm", "lifted", LIFTED[1]], ids=names)
def test_samples_need_an_owner(make_trainer: Make, optimizer: Any) -> None:
    loader = DataLoader(TensorDataset(*pairs()), 30)
    with pytest.raises(NotSupportedError, match=r"trainer\.fit\(model, morphlightning\.data\.indexed\(loader\)\)"):
        make_trainer().fit(regressor(optimizer), loader)


class Flipped(TensorDataset):
    """Random augmentation."""

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + torch.randn(5), y


@pytest.mark.parametrize("optimizer", ["badmm", "lifted", LIFTED[1]], ids=names)
def test_samples_may_not_change(make_trainer: Make, optimizer: Any) -> None:
    said = r"(?s)input of sample \d+ differs.*fixed_noise=True.*'memoryless'"
    with pytest.raises(NotSupportedError, match=said):
        make_trainer().fit(denoiser(optimizer), digits(optimizer, fixed_noise=False))
    with pytest.raises(NotSupportedError, match=said):
        make_trainer().fit(regressor(optimizer), ml.data.indexed(Flipped(*pairs())))


@pytest.mark.parametrize("mode", MODES[2:])
def test_without_memory_any_loader_will_do(make_trainer: Make, mode: str) -> None:
    optimizer = {"name": "lifted", "mode": mode}
    loader = DataLoader(Flipped(*pairs()), 30, shuffle=True)
    model = regressor(optimizer)
    assert not model.owns_samples
    make_trainer(max_epochs=2).fit(model, loader)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(denoiser(optimizer), digits(optimizer, fixed_noise=False))
    assert trainer.global_step == 8


class Stream(IterableDataset[Any]):
    """Nobody knows how many."""

    def __iter__(self) -> Any:
        return zip(*pairs(), strict=True)


@pytest.mark.parametrize("optimizer", ["badmm", LIFTED[2]], ids=names)
def test_a_loader_without_a_length_is_refused(make_trainer: Make, optimizer: Any) -> None:
    with pytest.raises(NotSupportedError, match=r"morphlightning\.data\.indexed|does not tell the number of samples"):
        make_trainer().fit(regressor(optimizer), DataLoader(Stream(), 30))


def test_a_loop_of_gradients_takes_a_loader_without_a_length(make_trainer: Make) -> None:
    trainer = make_trainer()
    trainer.fit(regressor({"name": "signum", "lr": 1e-3}), DataLoader(Stream(), 30))
    assert trainer.global_step == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "badmm", "tau_x": 2.0}, r"tau_x must lie in \(0, 2\).* got 2"),
        ({"name": "badmm", "tau_z": 0}, r"tau_z must lie in \(0, 2\)"),
        ({"name": "badmm", "tau_m": 2}, "tau_m must lie in"),
        ({"name": "badmm", "order": "XZW"}, "order must hold"),
        ({"name": "badmm", "z_step": "newton"}, "z_step must be one of linearized"),
        ({"name": "badmm", "rho": [1, 1, 1]}, "rho has 3 values, the network 2"),
        ({"name": "badmm", "rho": 0}, "rho must be > 0"),
        ({"name": "badmm", "ridge": -1}, "ridge must be >= 0"),
        ({"name": "badmm", "mu": float("nan")}, "mu must be > 0"),
        ({"name": "badmm", "lr": 0.1}, "no parameter"),
        ({"name": "badmm", "checkpoints": "all"}, "checkpoints must be one of gather, shards, none"),
        ({"name": "badmm", "storage": "disk"}, "storage must be one of device, cpu, memmap"),
        ({"name": "badmm", "monitor_every": 0}, "monitor_every must be >= 1"),
        ({"name": "lifted", "mode": "stochastic"}, "mode must be one of full, incremental, memoryless, ema"),
        ({"name": "lifted", "lr": 0.1}, "lr belongs to mode 'ema'"),
        ({"name": "lifted", "tau_x": -1}, r"tau_x must lie in \(0, 2\)"),
        ({"name": "lifted", "inner_x": 0}, "inner_x must be >= 1"),
        ({"name": "lifted", "mode": "ema", "beta": 1}, "beta must lie in"),
        ({"name": "lifted", "mode": "memoryless", "tau": 0}, "tau must be > 0"),
    ],
)
def test_settings_out_of_range(make_trainer: Make, spec: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=said):
        make_trainer().fit(regressor({"ridge": 0.1} | spec), ml.data.indexed(pairs()))


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(), nn.L1Loss(), nn.functional.mse_loss])
def test_losses_that_cannot_be_lifted(loss: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be lifted"):
        ml.LiftedModule(nn.Linear(2, 2), loss)


def test_parameters_of_activations_stay_and_are_named(make_trainer: Make) -> None:
    torch.manual_seed(0)
    threshold = registry.build("activations", {"name": "soft_threshold", "threshold": 0.1})
    net = nn.Sequential(nn.Linear(5, 7), nn.PReLU(), nn.Linear(7, 7), threshold, nn.Linear(7, 2))
    model = ml.LiftedModule(net, optimizer={"name": "lifted", "ridge": 0.1})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.warns(TrainingWarning, match=r"alone; 1\.weight, 3\.\w+ stay as they are"):
        make_trainer().fit(model, ml.data.indexed(pairs()))
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")}
    for part in (net[1], net[3]):
        part.requires_grad_(False)
    make_trainer().fit(model, ml.data.indexed(pairs()))  # no warning, which would be an error here


def test_not_finite_values_leave_the_weights_alone(make_trainer: Make) -> None:
    for size in (90, 20):
        model, (x, y) = regressor("badmm"), pairs()
        x[50] = float("nan")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with pytest.raises(DataError, match=r"Training batch .*\b50\b"):
            make_trainer().fit(model, ml.data.indexed((x, y), size))
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model, (x, y) = regressor("badmm"), pairs()
    with pytest.raises(NonFiniteError, match=r"layer 0 .*not finite"):
        make_trainer().fit(model, ml.data.indexed((x * 1e25, y)))


# ----------------------------------------------------------------------------------------------- storage and streaming
def end(
    make_trainer: Make, optimizer: dict[str, Any], size: int, epochs: int = 5, **settings: Any
) -> dict[str, Tensor]:
    model = regressor({"monitor_every": 2} | optimizer, torch.float64)
    trainer = make_trainer(max_epochs=epochs, precision="64-true")
    trainer.fit(model, ml.data.indexed(pairs(dtype=torch.float64), size, **settings))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("size", [90, 20])
@pytest.mark.parametrize("optimizer", [{"name": "badmm", "x_step": "mirror"}, *LIFTED[:2]], ids=names)
def test_storage_changes_no_bit(make_trainer: Make, optimizer: dict[str, Any], size: int) -> None:
    right = end(make_trainer, optimizer, size, shuffle=True)
    for storage in ("cpu", "memmap"):
        other = end(make_trainer, optimizer | {"storage": storage}, size, shuffle=True)
        assert all(torch.equal(other[name], right[name]) for name in right), storage


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "badmm"},
        {"name": "badmm", "order": "ZWXM", "x_step": "mirror"},
        {"name": "badmm", "order": "xWM"},
        {"name": "badmm", "w_step": "gradient"},
        {"name": "lifted"},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_streaming_equals_one_piece(make_trainer: Make, optimizer: dict[str, Any]) -> None:
    right = end(make_trainer, optimizer, 90, epochs=3, passes=5)
    other = end(make_trainer, optimizer, 20, epochs=3, passes=5, shuffle=True)
    for name, expected in right.items():
        assert (other[name] - expected).norm() < 1e-10 * expected.norm(), name


def test_memory_maps_are_gone_with_the_run(make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = regressor({"name": "badmm", "storage": "memmap"})
    make_trainer().fit(model, ml.data.indexed(pairs(), 20))
    (folder,) = tmp_path.glob("auxiliaries-*")
    assert len(list(folder.iterdir())) == 5
    del model.optimizer_component._store
    assert not folder.exists()


def test_a_second_fit_begins_anew(make_trainer: Make, tmp_path: Path) -> None:
    """Also after a checkpoint was tested, and on other data."""
    for optimizer in ("badmm", LIFTED[1]):
        model = regressor(optimizer)
        trainer = make_trainer(max_epochs=3)
        trainer.fit(model, ml.data.indexed(pairs(), 30))
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        trainer.validate(model, DataLoader(TensorDataset(*pairs()), 30), ckpt_path=tmp_path / "run.ckpt", verbose=False)
        make_trainer(max_epochs=2).fit(model, ml.data.indexed(pairs(40), 20))
        assert len(model.optimizer_component._store.known) == 40
        loaded = ml.LiftedModule.load_from_checkpoint(tmp_path / "run.ckpt", network=regressor(optimizer).network)
        make_trainer(max_epochs=2).fit(loaded, ml.data.indexed(pairs(40), 20))
        assert all(p.isfinite().all() for p in loaded.parameters())
        assert loaded.optimizer_component._store.known.tolist() == [True] * 40
