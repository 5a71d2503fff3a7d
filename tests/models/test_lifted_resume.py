"""Lifted runs that stop and resume: where auxiliary variables are kept, and that no bit is lost with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import morphlightning as ml
from morphlightning.bregman.samples import select
from morphlightning.checkpoint_io import SafeCheckpointIO
from morphlightning.errors import CheckpointError, NotSupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
Make = Callable[..., L.Trainer]
N, EPOCHS, PASSES = 90, 3, 3
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "XZWM": {"name": "badmm"},
    "ZWXM": {"name": "badmm", "order": "ZWXM", "tau_x": 1.0, "mu": 1.0},
    "mirror": {"name": "badmm", "x_step": "mirror"},
    "full": {"name": "lifted"},
    "incremental": {"name": "lifted", "mode": "incremental"},
    "memoryless": {"name": "lifted", "mode": "memoryless"},
    "ema": {"name": "lifted", "mode": "ema", "decay": 0.1},
}
LASTING = ("XZWM", "ZWXM", "mirror", "full", "incremental")


def pairs(n: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=draw)
    return x, (x @ torch.randn(5, 2, generator=draw)).relu()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2))


def model(which: str, **settings: Any) -> ml.LiftedModule:
    return ml.LiftedModule(network(), optimizer={"ridge": 0.1, "monitor_every": 2} | OPTIMIZERS[which] | settings)


def loader(size: int, **settings: Any) -> ml.data.OwnedLoader:
    return ml.data.indexed(pairs(), size, **{"passes": PASSES, "shuffle": True} | settings)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class SaveAt(Callback):
    """Saves a checkpoint after some of all batches."""

    def __init__(self, folder: Path, *after: int) -> None:
        self.folder, self.after, self.seen = folder, after, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen in self.after:
            trainer.save_checkpoint(self.folder / f"batch={self.seen}.ckpt")


@pytest.mark.parametrize("size", [N, 40])  # in one piece and in three, of which the last is smaller
@pytest.mark.parametrize(
    ("which", "checkpoints"),
    [(which, "gather") for which in OPTIMIZERS]
    + [("XZWM", "shards"), ("incremental", "shards"), ("memoryless", "shards")]
    + [pytest.param(which, "shards", marks=pytest.mark.slow) for which in ("ZWXM", "mirror", "full", "ema")],
)
def test_resumed_runs_end_bit_for_bit_the_same(
    make_trainer: Make, tmp_path: Path, which: str, size: int, checkpoints: str
) -> None:
    each = len(loader(size))
    moments = [each, each + 1, 2 * each - 1]  # an epoch's end, and where passes > 1 or pieces > 1 the middle of them
    straight = model(which, checkpoints=checkpoints)
    make_trainer(max_epochs=EPOCHS, callbacks=[SaveAt(tmp_path, *moments)]).fit(straight, loader(size))
    for moment in moments:
        resumed = model(which, checkpoints=checkpoints)
        trainer = make_trainer(max_epochs=EPOCHS)
        trainer.fit(resumed, loader(size), ckpt_path=tmp_path / f"batch={moment}.ckpt", weights_only=True)
        assert_equal(weights(resumed), weights(straight))
        assert resumed.optimizer_component.method.iteration == straight.optimizer_component.method.iteration
    shards = len(list((tmp_path / "auxiliaries").glob("*/rank=0.ckpt")))
    assert shards == (len(moments) if checkpoints == "shards" and which in LASTING else 0)


@pytest.mark.parametrize("which", ["XZWM", "full", "incremental"])
def test_double_precision_is_not_rounded_on_resume(make_trainer: Make, tmp_path: Path, which: str) -> None:
    straight = model(which)
    settings = {"max_epochs": EPOCHS, "precision": "64-true"}
    make_trainer(callbacks=[SaveAt(tmp_path, 4)], **settings).fit(straight, loader(40))
    resumed = model(which)
    make_trainer(**settings).fit(resumed, loader(40), ckpt_path=tmp_path / "batch=4.ckpt", weights_only=True)
    assert resumed.dtype == torch.float64
    assert_equal(weights(resumed), weights(straight))


@pytest.mark.parametrize("which", ["XZWM", "full", "incremental"])
def test_digits_resume_bit_for_bit(make_trainer: Make, tmp_path: Path, which: str) -> None:
    def fit(save: tuple[int, ...], **resume: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (1, 8, 8)))
        data = ml.data.Digits(batch_size=50, train_size=128, task="denoising", fixed_noise=True, passes=2)
        fitted = ml.LiftedModule(net, optimizer=OPTIMIZERS[which])
        make_trainer(max_epochs=3, limit_val_batches=1.0, callbacks=[SaveAt(tmp_path, *save)]).fit(
            fitted, data, **resume
        )
        return weights(fitted)

    straight = fit((4, 6, 11))
    for moment in (4, 6, 11):
        assert_equal(fit((), ckpt_path=tmp_path / f"batch={moment}.ckpt", weights_only=True), straight)


class Fault(Callback):
    """Raises before a batch, and saves a checkpoint on that."""

    def __init__(self, at: int, path: Path) -> None:
        self.at, self.path, self.seen = at, path, 0

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1
        if self.seen > self.at:
            raise RuntimeError("a fault")


@pytest.mark.parametrize("which", ["XZWM", "full", "incremental"])
def test_a_checkpoint_on_exception_goes_on_where_the_run_stopped(
    make_trainer: Make, tmp_path: Path, which: str
) -> None:
    straight = model(which)
    make_trainer(max_epochs=EPOCHS).fit(straight, loader(40))
    for at in (1, 11, 20):
        resumed, saved = model(which), tmp_path / "fault.ckpt"
        with pytest.raises(RuntimeError, match="a fault"):
            make_trainer(max_epochs=EPOCHS, callbacks=[Fault(at, saved)]).fit(model(which), loader(40))
        make_trainer(max_epochs=EPOCHS).fit(resumed, loader(40), ckpt_path=saved, weights_only=True)
        assert_equal(weights(resumed), weights(straight))


def denoise(make_trainer: Make, which: str, size: int, epochs: int, **settings: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss on the training data after some iterations, and the weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (1, 8, 8)))
    data = ml.data.Digits(batch_size=size, train_size=256, task="denoising", fixed_noise=True, noise=0.2)
    fitted = ml.LiftedModule(net, optimizer={"checkpoints": "none"} | OPTIMIZERS[which])
    trainer = make_trainer(max_epochs=epochs, callbacks=settings.pop("callbacks", []))
    trainer.fit(fitted, data, **settings)
    x, y, _ = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
    return fitted.data_loss(fitted(x), y).item(), weights(fitted)


@pytest.mark.parametrize("size", [256, 100])
@pytest.mark.parametrize(
    ("which", "iterations", "near"),
    [("XZWM", 5, 0.01), ("ZWXM", 5, 0.01), ("full", 1, 0.01), ("full", 5, 0.01), ("incremental", 5, 0.01)],
)
def test_without_auxiliary_variables_a_run_recovers(
    make_trainer: Make, tmp_path: Path, which: str, iterations: int, near: float, size: int
) -> None:
    save = [SaveAt(tmp_path, 20 * -(-256 // size))]
    right, _ = denoise(make_trainer, which, size, 20 + iterations, callbacks=save)
    (saved,) = tmp_path.glob("batch=*.ckpt")
    loss, _ = denoise(make_trainer, which, size, 20 + iterations, ckpt_path=saved)
    assert loss == pytest.approx(right, rel=near)


@pytest.mark.parametrize("which", ["XZWM", "full"])
def test_sums_lost_within_a_pass_cost_an_iteration_and_no_more(make_trainer: Make, tmp_path: Path, which: str) -> None:
    """That iteration would combine the Gram matrix of all inputs with moments of some."""
    right, _ = denoise(make_trainer, which, 100, 31, callbacks=[SaveAt(tmp_path, 61)])
    saved = tmp_path / "batch=61.ckpt"
    _, after = denoise(make_trainer, which, 100, 21, ckpt_path=saved)
    assert_equal(after, torch.load(saved, weights_only=True)["state_dict"])
    loss, _ = denoise(make_trainer, which, 100, 31, ckpt_path=saved)
    assert loss == pytest.approx(right, rel=0.01)


def test_a_policy_can_change_between_runs(make_trainer: Make, tmp_path: Path) -> None:
    """Incremental sums over samples whose variables are lost begin anew; loaded ones are used."""
    for before, after in (("gather", "none"), ("none", "gather"), ("shards", "gather")):
        first = model("incremental", checkpoints=before)
        make_trainer(max_epochs=2, callbacks=[SaveAt(tmp_path, 6)]).fit(first, loader(40, passes=3))
        resumed = model("incremental", checkpoints=after)
        trainer = make_trainer(max_epochs=3)
        trainer.fit(resumed, loader(40, passes=3), ckpt_path=tmp_path / "batch=6.ckpt")
        method, store = resumed.optimizer_component.method, resumed.optimizer_component._store
        assert method.seen == N
        gram = method._totals[-1].gram
        rows = torch.cat([store._rows["x2"], torch.ones(N, 1)], 1)
        torch.testing.assert_close(gram[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_states_are_regrouped_where_some_processes_know_no_sample_yet() -> None:
    """As in the middle of the first pass."""
    none = {"index": torch.tensor([], dtype=torch.int64)}
    some = {"index": torch.tensor([5, 1, 2]), "x": torch.tensor([[5.0], [1.0], [2.0]])}
    assert select([none, none], 0, 3)["index"].tolist() == []
    for states in ([none, some], [some, none]):
        mine = select(states, 2, 3)
        assert (mine["index"].tolist(), mine["x"].tolist()) == ([2, 5], [[2.0], [5.0]])


def test_a_loaded_model_resumes(make_trainer: Make, tmp_path: Path) -> None:
    straight = model("XZWM", checkpoints="shards")
    make_trainer(max_epochs=EPOCHS, callbacks=[SaveAt(tmp_path, 4)]).fit(straight, loader(N))
    path = tmp_path / "batch=4.ckpt"
    loaded = ml.LiftedModule.load_from_checkpoint(path, network=network())
    make_trainer(max_epochs=EPOCHS).fit(loaded, loader(N), ckpt_path=path, weights_only=True)
    assert_equal(weights(loaded), weights(straight))


def test_a_checkpoint_of_other_data_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    for which in ("XZWM", "incremental"):
        make_trainer(max_epochs=1, callbacks=[SaveAt(tmp_path, 3)]).fit(model(which), loader(N))
        for n in (60, 120):
            data = ml.data.indexed(pairs(n), passes=PASSES)
            with pytest.raises(NotSupportedError, match=f"belongs to 90 samples, here are {n}: resume with the same"):
                make_trainer(max_epochs=2).fit(model(which), data, ckpt_path=tmp_path / "batch=3.ckpt")


def test_a_checkpoint_can_be_written_before_training(make_trainer: Make, tmp_path: Path) -> None:
    class First(Callback):
        def on_sanity_check_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "bound.ckpt")

        def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "start.ckpt")

    data = ml.data.Digits(batch_size=128, train_size=128, task="denoising", fixed_noise=True)

    def fit(callbacks: list[Callback], **resume: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64))
        fitted = ml.LiftedModule(net, optimizer={"name": "badmm", "checkpoints": "shards"})
        settings = {"num_sanity_val_steps": 1, "limit_val_batches": 1.0}
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, **settings)
        if not resume:
            trainer.validate(fitted, data, verbose=False)
            trainer.save_checkpoint(tmp_path / "untrained.ckpt")
        trainer.fit(fitted, data, **resume)
        return weights(fitted)

    straight = fit([First()])
    for name in ("bound", "start"):
        assert_equal(fit([], ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True), straight)


# -------------------------------------------------------------------------------------------------------------- shards
def shards(root: Path) -> set[Path]:
    return set((root / "auxiliaries").glob("*"))


def named(checkpoint: Path) -> Path:
    return Path(SafeCheckpointIO().load_checkpoint(checkpoint)["morphlightning"]["auxiliary"]["shards"])


def fit_with_rotation(make_trainer: Make, root: Path, epochs: int = 6, **resume: Any) -> ml.LiftedModule:
    fitted = model("XZWM", checkpoints="shards")
    keep = ModelCheckpoint(root / "kept", "{step}", every_n_train_steps=1, save_top_k=2, monitor="step", mode="max")
    last = ModelCheckpoint(root / "last", "{step}", every_n_train_steps=1, save_top_k=0, save_last=True)
    logger = CSVLogger(root.parent, root.name, version="")
    trainer = make_trainer(max_epochs=epochs, callbacks=[keep, last], enable_checkpointing=True, logger=logger)
    trainer.fit(fitted, loader(N, passes=1), **resume)
    return fitted


def test_shards_come_and_go_with_their_checkpoints(make_trainer: Make, tmp_path: Path) -> None:
    straight = fit_with_rotation(make_trainer, tmp_path)
    living = sorted(tmp_path.rglob("*/*.ckpt"))
    living = [path for path in living if path.parent.name in ("kept", "last")]
    assert [path.name for path in living] == ["step=5.ckpt", "step=6.ckpt", "last.ckpt"]
    assert {named(path) for path in living} == shards(tmp_path)
    assert len(shards(tmp_path)) == 3
    resumed = fit_with_rotation(make_trainer, tmp_path, ckpt_path=tmp_path / "kept" / "step=5.ckpt")
    assert_equal(weights(resumed), weights(straight))


@pytest.mark.parametrize("original", [True, False])
def test_a_copied_or_moved_run_finds_its_shards_and_spares_those_of_the_original(
    make_trainer: Make, tmp_path: Path, original: bool
) -> None:
    straight = fit_with_rotation(make_trainer, tmp_path / "a", epochs=8)
    shutil.rmtree(tmp_path / "a")
    fit_with_rotation(make_trainer, tmp_path / "a", epochs=4)
    (shutil.copytree if original else shutil.move)(tmp_path / "a", tmp_path / "b")
    before = shards(tmp_path / "a")
    for start in ("kept/step=4.ckpt", "last/last.ckpt"):
        path = tmp_path / "b" / start
        if not path.exists():
            continue
        resumed = fit_with_rotation(make_trainer, tmp_path / "b", epochs=8, ckpt_path=path)
        assert_equal(weights(resumed), weights(straight))
    assert shards(tmp_path / "a") == before
    assert bool(before) == original
    if original:
        resumed = fit_with_rotation(make_trainer, tmp_path / "a", 8, ckpt_path=tmp_path / "a" / "kept" / "step=4.ckpt")
        assert_equal(weights(resumed), weights(straight))


def test_removing_a_copy_of_a_checkpoint_spares_its_shards(make_trainer: Make, tmp_path: Path) -> None:
    fit_with_rotation(make_trainer, tmp_path)
    saved = tmp_path / "kept" / "step=6.ckpt"
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(saved, tmp_path / "elsewhere" / "best.ckpt")
    SafeCheckpointIO().remove_checkpoint(copy)
    assert named(saved).is_dir()
    copy = shutil.copy(saved, tmp_path / "kept" / "best.ckpt")
    SafeCheckpointIO().save_checkpoint({"nothing": 0}, copy)
    assert named(saved).is_dir()
    folder = named(saved)
    SafeCheckpointIO().remove_checkpoint(saved)
    assert not folder.exists()


def test_missing_and_damaged_shards_are_named(make_trainer: Make, tmp_path: Path) -> None:
    fit_with_rotation(make_trainer, tmp_path)
    saved = tmp_path / "kept" / "step=6.ckpt"
    shard = named(saved) / "rank=0.ckpt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{shard.parent.name}/rank=0.ckpt cannot be loaded: .* damaged"):
        fit_with_rotation(make_trainer, tmp_path, 8, ckpt_path=saved)
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"of process 0 are not there.*{shard.parent.name}.*Put the folder"):
        fit_with_rotation(make_trainer, tmp_path, 8, ckpt_path=saved)


@pytest.mark.parametrize("start", ["last", "best"])
def test_shards_are_found_of_checkpoints_that_the_trainer_finds(make_trainer: Make, tmp_path: Path, start: str) -> None:
    straight = fit_with_rotation(make_trainer, tmp_path, 8)
    shutil.rmtree(tmp_path)
    fitted, keep = model("XZWM", checkpoints="shards"), ModelCheckpoint(tmp_path / "kept", save_last=True)
    trainer = make_trainer(max_epochs=4, callbacks=[keep], enable_checkpointing=True)
    trainer.fit(fitted, loader(N, passes=1))
    trainer.fit_loop.max_epochs = 8
    trainer.fit(fitted, loader(N, passes=1), ckpt_path=start)
    assert_equal(weights(fitted), weights(straight))
