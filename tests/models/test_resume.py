"""Stopping and resuming whole models: parameters, optimizer, schedule and metrics of a run that never stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from morphlightning.data import Digits
from morphlightning.models import MorphologicalAutoencoder, MorphologicalClassifier, PluginTraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

SHAPE, EPOCHS, STEPS = (1, 8, 8), 3, 4
Make = Callable[..., L.Trainer]
Start = tuple[PluginTraining, L.LightningDataModule]


def classifier(workers: int) -> Start:
    torch.manual_seed(0)
    optimizer = {"name": "adamw", "lr": 0.01, "schedule": "one_cycle"}
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten())
    model = MorphologicalClassifier(
        SHAPE,
        backbone=backbone,
        head="max_plus",
        heuristic="count_normalized",
        derivative="bouligand",
        optimizer=optimizer,
    )
    return model, Digits(batch_size=64, train_size=64 * STEPS, num_workers=workers)


def denoiser(workers: int) -> Start:
    torch.manual_seed(0)
    optimizer = {"name": "adam", "lr": 0.01, "schedule": "cosine", "warmup": 0.2}
    model = MorphologicalAutoencoder(
        SHAPE, channels=(4,), optimizer=optimizer, regularizers=["l1"], diagnostics=["gradient_density"]
    )
    return model, Digits(batch_size=64, train_size=64 * STEPS, num_workers=workers, task="denoising")


def morph_descent(workers: int) -> Start:
    torch.manual_seed(0)
    optimizer = {"name": "morph_sgd", "morph_momentum": 0.5, "radius_clip": 0.3, "schedule": "cosine"}
    model = MorphologicalClassifier(SHAPE, channels=(4,), head="max_plus", head_units=20, optimizer=optimizer)
    return model, Digits(batch_size=64, train_size=64 * STEPS, num_workers=workers)


def splines(workers: int) -> Start:
    torch.manual_seed(0)
    activation = {"name": "linear_spline", "constraint": "lipschitz", "projection": "step", "metric": "l2"}
    model = MorphologicalClassifier(
        SHAPE,
        channels=(4,),
        activation=activation,
        optimizer={"name": "adam", "lr": 0.01, "schedule": "cosine"},
        regularizers=[{"name": "tv2", "weight": 0.1, "mode": "prox"}],
        diagnostics=["spline_monitor"],
    )
    return model, Digits(batch_size=64, train_size=64 * STEPS, num_workers=workers)


def fit(make_trainer: Make, start: Start, keep: list[ModelCheckpoint], **resume: Any) -> dict[str, Any]:
    """Everything that a run ends with, by name."""
    model, data = start
    settings = {"limit_val_batches": 1.0, "enable_checkpointing": bool(keep)}
    trainer = make_trainer(max_epochs=EPOCHS, callbacks=list(keep), **settings)
    trainer.fit(model, data, **resume)
    assert trainer.global_step == EPOCHS * STEPS
    (optimizer,) = trainer.optimizers
    end: dict[str, Any] = dict(model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        end |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    end["rates"] = torch.tensor([group["lr"] for group in optimizer.param_groups])
    return end | {name: value for name, value in trainer.logged_metrics.items() if name.startswith("val/")}


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert any(name.startswith("val/") for name in a)
    assert [name for name in a if not torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name]))] == []


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    return [
        ModelCheckpoint(folder, "step-{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False),
        ModelCheckpoint(folder, "epoch-{epoch}", save_top_k=-1, auto_insert_metric_name=False),
    ]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [classifier, denoiser, morph_descent, splines])
def test_resume_bit_for_bit(make_trainer: Make, tmp_path: Path, make: Callable[[int], Start], workers: int) -> None:
    straight = fit(make_trainer, make(workers), checkpoints(tmp_path))
    assert not any(value.isnan().any() for value in map(torch.as_tensor, straight.values()))
    for name in ("step-2", "step-7", "epoch-0", "epoch-1"):
        resume = {"ckpt_path": tmp_path / f"{name}.ckpt", "weights_only": True}
        assert_equal(fit(make_trainer, make(workers), [], **resume), straight)


def test_resume_with_workers_where_there_were_none(make_trainer: Make, tmp_path: Path) -> None:
    straight = fit(make_trainer, denoiser(0), checkpoints(tmp_path))
    resumed = fit(make_trainer, denoiser(2), [], ckpt_path=tmp_path / "step-6.ckpt", weights_only=True)
    assert_equal(resumed, straight)


def test_the_rate_at_the_end_is_that_of_the_schedule(make_trainer: Make) -> None:
    end = fit(make_trainer, denoiser(0), [])
    assert end["rates"].tolist() == pytest.approx([0.0] * len(end["rates"]), abs=1e-9)
    assert math.isfinite(end["val/psnr"])


def test_fit_goes_on_with_a_model_from_a_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    """load_from_checkpoint and ckpt_path together: nothing of the model has to be repeated in the script."""
    straight = fit(make_trainer, denoiser(0), checkpoints(tmp_path))
    path = tmp_path / "epoch-0.ckpt"
    torch.manual_seed(1)
    model = MorphologicalAutoencoder.load_from_checkpoint(path)
    resumed = fit(make_trainer, (model, denoiser(0)[1]), [], ckpt_path=path, weights_only=True)
    assert_equal(resumed, straight)
