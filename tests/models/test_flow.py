"""Normalizing flows as a LightningModule: likelihood, images, starts, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from morphlightning.data import Digits, ToyDensity
from morphlightning.errors import ConfigError, DataError, DtypeError, NotSupportedError, ShapeError
from morphlightning.flows import Normalization
from morphlightning.models import NormalizingFlow

Make = Callable[..., L.Trainer]
SMALL: dict[str, Any] = {"layers": 2, "hidden": (16,), "bins": 4}
DIGITS: dict[str, Any] = SMALL | {"in_shape": (1, 8, 8), "levels": 17}


def images(n: int = 20) -> torch.Tensor:
    return torch.randint(0, 17, (n, 1, 8, 8)) / 16


def gaussian_fit(points: torch.Tensor) -> float:
    """Entropy of the Gaussian with the covariance of the points, in nats."""
    dim = points.shape[1]
    return float(0.5 * torch.logdet(torch.cov(points.T)) + 0.5 * dim * (1 + math.log(2 * math.pi)))


def test_training_passes_the_gaussian_fit(make_trainer: Make) -> None:
    model = NormalizingFlow(layers=4, hidden=(32,), optimizer={"name": "adam", "lr": 0.01})
    data = ToyDensity("two_moons", train_size=2000, val_size=500, batch_size=200)
    trainer = make_trainer(max_epochs=8, limit_val_batches=1.0)
    trainer.fit(model, data)
    nll = float(trainer.logged_metrics["val/nll"])
    assert nll == float(trainer.logged_metrics["val/loss"])
    assert nll < gaussian_fit(data.points("train")) - 0.3
    with torch.no_grad():
        assert nll == pytest.approx(-float(model.log_prob(data.points("val")).mean()), abs=1e-5)
    samples = model.sample(500, torch.Generator().manual_seed(0))
    assert samples.shape == (500, 2)
    assert -model.log_prob(samples).mean().item() == pytest.approx(nll, abs=0.3)


@pytest.mark.parametrize("kind", ["coupling", "residual"])
def test_transform_and_inverse(kind: Any) -> None:
    model, x = NormalizingFlow((3, 2), kind, **SMALL), torch.randn(5, 3, 2)
    z = model.transform(x)
    assert z.shape == (5, 6)
    torch.testing.assert_close(model.inverse(z), x, atol=1e-6, rtol=1e-6)
    assert model(x).shape == (5,)
    assert torch.equal(model(x), model.log_prob(x))


def test_a_residual_flow_learns(make_trainer: Make) -> None:
    """Also in Lightning's inference mode, where no graph can be made of what it passes in."""
    adam = {"name": "adam", "lr": 0.01}
    model = NormalizingFlow(kind="residual", layers=3, hidden=(16,), activation="relu", optimizer=adam)
    data = ToyDensity("two_moons", train_size=1000, val_size=500, batch_size=100)
    trainer = make_trainer(max_epochs=6, limit_val_batches=1.0)
    trainer.fit(model, data)
    assert float(trainer.logged_metrics["val/nll"]) < gaussian_fit(data.points("train")) - 0.03


def test_batches_are_points_or_begin_with_them(make_trainer: Make) -> None:
    points = torch.randn(64, 2)
    for collate in (torch.stack, lambda rows: [torch.stack(rows)], lambda rows: (torch.stack(rows), 3, "label")):
        torch.manual_seed(0)
        model = NormalizingFlow(**SMALL)
        loader = DataLoader(points, batch_size=32, collate_fn=collate)  # type: ignore[arg-type]
        trainer = make_trainer(limit_val_batches=1.0)
        trainer.fit(model, loader, loader)
        ends = float(trainer.logged_metrics["val/nll"])
        assert ends == pytest.approx(trainer.predict(model, loader)[0].mean().neg().item(), abs=0.5)  # type: ignore
        assert math.isfinite(ends)


# ----------------------------------------------------------------------------------------------------------- images
def test_dequantization_is_undone_by_quantization() -> None:
    model, x = NormalizingFlow(**DIGITS), images()
    y = model.dequantize(x)
    assert y.min() >= 0
    assert y.max() <= 1
    torch.testing.assert_close(model.quantize(y), x)
    level = (x * 16).round()
    noise = y * 17 - level
    assert noise.min() > -1e-4
    assert noise.max() < 1 + 1e-4
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(model.dequantize(x), y)


def test_bits_per_dimension_of_uniform_noise() -> None:
    """A density of 1 on the unit cube costs log2(levels) bits for each number."""
    model = NormalizingFlow(**DIGITS)
    assert model.bits_per_dim(torch.zeros(3)).tolist() == pytest.approx([math.log2(17)] * 3)
    assert float(model.bits_per_dim(torch.tensor(64 * math.log(17)))) == pytest.approx(0.0, abs=1e-6)


def test_bits_per_dimension_are_logged_and_fall(make_trainer: Make) -> None:
    model = NormalizingFlow(**DIGITS, optimizer={"name": "adam", "lr": 0.01})
    data = Digits(batch_size=128, task="reconstruction")
    trainer = make_trainer(max_epochs=3, limit_val_batches=1.0)
    trainer.fit(model, data)
    bits = [float(trainer.validate(model, data, verbose=False)[0]["val/bits_per_dim"]) for _ in range(2)]
    assert bits[0] == bits[1]  # the same noise each time
    assert bits[0] == pytest.approx(float(trainer.logged_metrics["val/bits_per_dim"]))
    assert 1 < bits[0] < 0.75 * math.log2(17)
    sheet = model.sample(5, torch.Generator().manual_seed(0))
    assert sheet.shape == (5, 1, 8, 8)
    torch.testing.assert_close((sheet * 16).round() / 16, sheet)


@pytest.mark.parametrize("x", [images() + 0.02, images() * 2, images() - 1, images() * 16 / 15, images() * math.nan])
def test_images_of_other_levels(x: torch.Tensor) -> None:
    with pytest.raises(DataError, match="17 levels"):
        NormalizingFlow(**DIGITS).dequantize(x)


def test_noisy_images_are_refused_in_training(make_trainer: Make) -> None:
    with pytest.raises(DataError, match="reconstruction"):
        make_trainer().fit(NormalizingFlow(**DIGITS), Digits(task="denoising"))


def test_points_have_no_bits() -> None:
    model = NormalizingFlow(**SMALL)
    for call in (model.dequantize, model.quantize, model.bits_per_dim):
        with pytest.raises(ConfigError, match="levels=None"):
            call(torch.zeros(2, 2))


# ----------------------------------------------------------------------------------------------------------- starts
def test_normalizations_start_from_the_data(make_trainer: Make) -> None:
    model = NormalizingFlow(**SMALL, optimizer={"name": "sgd", "lr": 1e-9})
    data = ToyDensity("pinwheel", train_size=1024, batch_size=100)
    state = torch.get_rng_state()
    model.start(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        z = model.transform(data.points("train"))
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    assert 0.98 < float(z.std()) < 1.02
    other = NormalizingFlow(**SMALL, optimizer={"name": "sgd", "lr": 1e-9})
    make_trainer().fit(other, data)
    for name, value in other.state_dict().items():
        if "mean" in name or "log_scale" in name:
            torch.testing.assert_close(value, model.state_dict()[name])


# ------------------------------------------------------------------------------------------------------ checkpoints
def digits(workers: int) -> tuple[NormalizingFlow, L.LightningDataModule]:
    torch.manual_seed(0)
    model = NormalizingFlow(**DIGITS, optimizer={"name": "adam", "lr": 0.01, "schedule": "cosine"})
    return model, Digits(batch_size=64, train_size=256, num_workers=workers, task="reconstruction")


def toys(workers: int) -> tuple[NormalizingFlow, L.LightningDataModule]:
    torch.manual_seed(0)
    model = NormalizingFlow(**SMALL, regularizers=["l1"])
    return model, ToyDensity(batch_size=64, train_size=256, val_size=64, num_workers=workers)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("start", [digits, toys])
def test_resume_bit_for_bit(make_trainer: Make, tmp_path: Path, start: Callable[[int], Any]) -> None:
    def fit(keep: bool, **resume: Any) -> dict[str, Any]:
        torch.manual_seed(7)
        model, data = start(0)
        saved = ModelCheckpoint(
            tmp_path, "step-{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
        )
        settings = {"callbacks": [saved] if keep else [], "enable_checkpointing": keep, "limit_val_batches": 1.0}
        trainer = make_trainer(max_epochs=2, **settings)
        trainer.fit(model, data, **resume)
        assert trainer.global_step == 8
        return dict(model.state_dict()) | {"nll": trainer.logged_metrics["val/nll"]}

    straight = fit(True)
    for name in ("step-2", "step-5"):
        resumed = fit(False, ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True)
        assert [key for key in straight if not torch.equal(resumed[key], straight[key])] == []


def test_hyperparameters_rebuild_the_model(make_trainer: Make, tmp_path: Path) -> None:
    model, data = digits(0)
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "flow.ckpt")
    loaded = NormalizingFlow.load_from_checkpoint(tmp_path / "flow.ckpt").eval()
    y = model.dequantize(images())
    assert torch.equal(loaded.log_prob(y), model.eval().log_prob(y))
    assert not loaded.flow.bijection.awaits_data
    own = NormalizingFlow(bijection=Normalization(2))
    make_trainer(max_steps=1).fit(own, ToyDensity(train_size=64))
    trainer = make_trainer(max_steps=1)
    trainer.fit(own, ToyDensity(train_size=64))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ConfigError, match="pass it again"):
        NormalizingFlow.load_from_checkpoint(tmp_path / "own.ckpt")
    NormalizingFlow.load_from_checkpoint(tmp_path / "own.ckpt", bijection=Normalization(2))


# --------------------------------------------------------------------------------------------------------- refusals
def test_samples_of_another_shape() -> None:
    model = NormalizingFlow((1, 5, 3), **SMALL)
    for x in (torch.zeros(2, 1, 3, 5), torch.zeros(2, 15), torch.zeros(1, 5, 3)):
        with pytest.raises(ShapeError, match="in_shape"):
            model.log_prob(x)
    with pytest.raises(DtypeError):
        model.log_prob(torch.zeros(2, 1, 5, 3, dtype=torch.uint8))
    with pytest.raises(ShapeError):
        model.inverse(torch.zeros(2, 14))


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_shape": ()},
        {"in_shape": (0,)},
        {"in_shape": (1,)},
        {"layers": 0},
        {"kind": "autoregressive"},
        {"kind": "residual", "contraction": 1.0},
        {"hidden": (0,)},
        {"levels": 1},
        {"spline": "cubic"},
        {"bins": 0},
        {"slopes": (1.0, 2.0)},
        {"bijection": Normalization(3)},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        NormalizingFlow(**wrong)


def test_loops_for_other_losses_are_refused() -> None:
    with pytest.raises((ConfigError, NotSupportedError)):
        NormalizingFlow(optimizer="badmm")
