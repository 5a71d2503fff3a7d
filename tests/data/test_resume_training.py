"""Runs that stop and resume with a real Trainer: their parameters are those of a run that never stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn

from morphlightning.data import Digits

EPOCHS, BATCHES = 3, 7

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Linear(L.LightningModule):
    """One linear layer that denoises; remembers which batches it saw, so that an order can be compared too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)
        self.seen: list[tuple[int, int, float]] = []
        self.validations = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        noisy, clean = batch
        self.seen.append((self.current_epoch, batch_idx, float(noisy.sum())))
        return nn.functional.mse_loss(self.layer(noisy.flatten(1)), clean.flatten(1))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def digits(workers: int = 0, **settings: Any) -> Digits:
    return Digits(batch_size=16, train_size=100, task="denoising", num_workers=workers, val_fraction=0.01, **settings)


def fit(
    folder: Path,
    callbacks: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
    workers: int = 0,
    **settings: Any,
) -> Linear:
    model = Linear()
    trainer = L.Trainer(
        **{"max_epochs": EPOCHS, "num_sanity_val_steps": 0, **settings},
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
    )
    trainer.fit(model, digits(workers), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model


def assert_same_end(resumed: Linear, straight: Linear) -> None:
    assert resumed.seen == straight.seen[len(straight.seen) - len(resumed.seen) :]
    assert torch.equal(resumed.layer.weight, straight.layer.weight)
    assert torch.equal(resumed.layer.bias, straight.layer.bias)


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "step", "{step}", every_n_train_steps=1, save_top_k=-1)


def every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "epoch", "{epoch}", save_on_train_epoch_end=True, save_top_k=-1)


def every_validation(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "validation", "{epoch}", save_on_train_epoch_end=False, save_top_k=-1, mode="max")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Linear, Path]:
    folder = tmp_path_factory.mktemp("straight")
    return fit(folder, [every_step(folder), every_epoch(folder), every_validation(folder)]), folder


def test_the_straight_run_is_what_the_others_rely_on(straight: tuple[Linear, Path]) -> None:
    model, folder = straight
    assert [(epoch, batch) for epoch, batch, _ in model.seen] == [(e, b) for e in range(EPOCHS) for b in range(BATCHES)]
    assert len({total for _, _, total in model.seen}) == EPOCHS * BATCHES
    assert len(list((folder / "step").iterdir())) == EPOCHS * BATCHES


@pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES))
def test_resume_after_any_step(straight: tuple[Linear, Path], tmp_path: Path, step: int) -> None:
    model, folder = straight
    resumed = fit(tmp_path, ckpt_path=folder / "step" / f"step={step}.ckpt")
    assert len(resumed.seen) == EPOCHS * BATCHES - step
    assert_same_end(resumed, model)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["epoch", "validation"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_resume_after_an_epoch(
    straight: tuple[Linear, Path], tmp_path: Path, kind: str, epoch: int, workers: int
) -> None:
    model, folder = straight
    resumed = fit(tmp_path, ckpt_path=folder / kind / f"epoch={epoch}.ckpt", workers=workers)
    assert len(resumed.seen) == (EPOCHS - 1 - epoch) * BATCHES
    assert_same_end(resumed, model)


@pytest.mark.parametrize("step", [3, 7, 10])
def test_resume_with_workers(straight: tuple[Linear, Path], tmp_path: Path, step: int) -> None:
    model, folder = straight
    resumed = fit(tmp_path, ckpt_path=folder / "step" / f"step={step}.ckpt", workers=2)
    assert len(resumed.seen) == EPOCHS * BATCHES - step
    assert_same_end(resumed, model)


def test_a_run_with_workers_writes_the_same_checkpoints(straight: tuple[Linear, Path], tmp_path: Path) -> None:
    model, _ = straight
    assert_same_end(fit(tmp_path, [every_step(tmp_path)], workers=2), model)
    assert_same_end(fit(tmp_path, ckpt_path=tmp_path / "step" / "step=11.ckpt", workers=0), model)


def test_resume_twice(straight: tuple[Linear, Path], tmp_path: Path) -> None:
    model, folder = straight
    checkpoint = folder / "step" / "step=9.ckpt"
    fit(tmp_path, [every_step(tmp_path)], ckpt_path=checkpoint, max_epochs=-1, max_steps=12)
    assert_same_end(fit(tmp_path, ckpt_path=tmp_path / "step" / "step=12.ckpt"), model)


class Fail(Callback):
    """Raises in the middle of the run, before or after the optimizer's step of a batch."""

    def __init__(self, hook: str, step: int) -> None:
        setattr(self, hook, self.fail)
        self.step, self.calls = step, 0

    def fail(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.step:
            raise RuntimeError("stop here")


@pytest.mark.filterwarnings("ignore:.*was called without a model", "ignore:.*there is no last checkpoint")
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_train_batch_end"])
@pytest.mark.parametrize(("step", "workers"), [(1, 0), (10, 0), (14, 0), (15, 0), (10, 2)])
def test_resume_after_an_exception_neither_loses_nor_repeats_a_batch(
    straight: tuple[Linear, Path], tmp_path: Path, hook: str, step: int, workers: int
) -> None:
    model, _ = straight
    with pytest.raises(RuntimeError, match="stop here"):
        fit(tmp_path, [Fail(hook, step), OnExceptionCheckpoint(tmp_path)], workers=workers)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    assert_same_end(fit(tmp_path, ckpt_path=checkpoint, workers=workers), model)


@pytest.mark.parametrize(
    "settings", [{"limit_train_batches": 4}, {"val_check_interval": 3}, {"max_steps": 18, "max_epochs": -1}]
)
def test_resume_under_other_settings_of_the_trainer(tmp_path: Path, settings: dict[str, Any]) -> None:
    callbacks = [every_step(tmp_path), every_epoch(tmp_path)]
    model = fit(tmp_path, callbacks, **settings)
    for step in (2, 4, 6, 7, 8, 9):
        resumed = fit(tmp_path, ckpt_path=tmp_path / "step" / f"step={step}.ckpt", **settings)
        assert_same_end(resumed, model)
    resumed = fit(tmp_path, ckpt_path=tmp_path / "epoch" / "epoch=0.ckpt", **settings)
    assert_same_end(resumed, model)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches(tmp_path: Path) -> None:
    model = fit(tmp_path, overfit_batches=2)
    assert [batch for _, batch, _ in model.seen] == [0, 1] * EPOCHS


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_no_validation_data(tmp_path: Path) -> None:
    model = Linear()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = Digits(val_fraction=0, train_size=64, task="denoising")
    trainer.fit(model, module)
    assert (len(model.seen), model.validations) == (1, 0)


def test_the_data_module_comes_back_from_a_checkpoint(straight: tuple[Linear, Path]) -> None:
    _, folder = straight
    module = Digits.load_from_checkpoint(folder / "step" / "step=1.ckpt", weights_only=True)
    assert module.hparams == digits().hparams


SCRIPT = """
import sys
from pathlib import Path
import torch
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
sys.path.insert(0, sys.argv[2])
from test_resume_training import Linear, digits

class Double(Linear):
    def training_step(self, batch, batch_idx):
        return super().training_step([part.double() for part in batch], batch_idx)

def fit(devices, batch_size, name, ckpt_path=None, limit=6):
    torch.set_num_threads(1)
    module = digits()
    module.hparams["batch_size"] = batch_size
    model = Double().double()
    keep = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto",
        limit_train_batches=limit, limit_val_batches=0, default_root_dir=folder, callbacks=[keep], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(model, module, ckpt_path=ckpt_path)
    return [parameter.detach().clone() for parameter in model.parameters()]

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fit(2, 8, "two")
    last = lambda name: torch.load(folder / name / "step=12.ckpt", weights_only=True)["state_dict"]
    fit(2, 8, "again", ckpt_path=folder / "two" / "step=4.ckpt")
    assert all(torch.equal(last("two")[key], last("again")[key]) for key in last("two")), "resumed differently"
    fit(1, 16, "one")
    for key, value in last("one").items():
        torch.testing.assert_close(last("two")[key], value, rtol=1e-10, atol=1e-12)
    print("all equal")
"""


def test_two_processes_train_and_resume_like_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert "all equal" in done.stdout, done.stderr[-3000:]
