from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.bregman import SquaredError
from morphlightning.errors import ConfigError, DataError, DtypeError, ShapeError, TrainingWarning
from morphlightning.models import RidgeRegularizerDenoiser

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
Make = Callable[..., L.Trainer]
ADAM = {"name": "adam", "lr": 5e-3, "rates": {"activation": 1e-3, "scale": 1e-2}}
STEEP = {
    "name": "linear_spline",
    "knots": 41,
    "limit": 0.1,
    "init": "identity",
    "constraint": {"min": -1.0, "odd": True, "level_ends": True},
}


def pieces(n: int = 24, size: int = 20) -> Tensor:
    """Images of overlapping rectangles."""
    draw = torch.Generator().manual_seed(0)
    images = torch.full((n, 1, size, size), 0.5)
    for image in images:
        for _ in range(5):
            (top, bottom), (left, right) = (
                torch.randint(0, size, (2,), generator=draw).sort().values for _ in range(2)
            )
            image[0, top : bottom + 1, left : right + 1] = torch.rand((), generator=draw)
    return images


def batches(sigma: bool = False, size: int = 8) -> DataLoader[Any]:
    clean, draw = pieces(), torch.Generator().manual_seed(1)
    level = torch.linspace(5, 30, len(clean)) / 255 if sigma else torch.full((len(clean),), 25 / 255)
    noisy = clean + level.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=draw)
    return DataLoader(TensorDataset(noisy, clean, *([level] if sigma else [])), batch_size=size)


def small(**settings: Any) -> RidgeRegularizerDenoiser:
    torch.manual_seed(0)
    given = {"channels": (1, 2, 6), "kernel_size": 3, "optimizer": ADAM, "train_tolerance": 1e-3} | settings
    return RidgeRegularizerDenoiser(**given)


@pytest.mark.parametrize(
    ("settings", "sigma"),
    [
        ({}, False),
        ({"weak_convexity": 0.0, "training": "steps", "steps": 5, "shared": False}, False),
        ({"noise": (0.0, 30 / 255)}, True),
        ({"weak_convexity": 0.0, "scaled": False, "regularizers": ["tv2"]}, False),
    ],
)
def test_training_denoises_and_keeps_its_promises(make_trainer: Make, settings: dict[str, Any], sigma: bool) -> None:
    model = small(**settings)
    trainer = make_trainer(max_epochs=8, limit_val_batches=1.0, gradient_clip_val=None)
    (before,) = trainer.validate(model, batches(sigma), verbose=False)
    trainer.fit(model, batches(sigma), batches(sigma))
    (after,) = trainer.validate(model, batches(sigma), verbose=False)
    assert after["val/psnr"] > before["val/psnr"] + 0.5
    assert model.weak_convexity() <= model.hparams["weak_convexity"] * (1 + 1e-5)
    assert model.convexity_modulus() >= -1e-5
    assert model.regularizer.certified


def test_the_denoised_image_does_not_depend_on_its_batch() -> None:
    model = small(activation=STEEP).eval()
    noisy, _ = next(iter(batches()))
    assert torch.allclose(model(noisy)[2:3], model(noisy[2:3]), atol=1e-6)


def test_energy_and_gradient_belong_together() -> None:
    model = small(activation=STEEP).double()
    x = pieces(2).double().requires_grad_()
    (expected,) = torch.autograd.grad(model.energy(x, 0.05).sum(), x)
    assert torch.allclose(model.grad(x, 0.05), expected, atol=1e-14)
    assert torch.equal(model.grad(x), model.grad(x, 25 / 255))


def test_any_size_and_a_stated_stopping_rule() -> None:
    model = small(activation=STEEP).eval()
    y = 0.5 + 0.1 * torch.randn(1, 1, 13, 31)
    rough, fine = model.denoise(y, tolerance=1e-3), model.denoise(y, tolerance=1e-6, max_iterations=2000)
    assert fine.x.shape == y.shape
    assert fine.converged.all()
    assert fine.iterations > rough.iterations
    assert fine.residual.max() <= 1e-6


def test_a_run_resumes_bit_for_bit(make_trainer: Make, tmp_path: Path) -> None:
    whole = small(noise=(0.0, 30 / 255))
    make_trainer(max_epochs=2).fit(whole, batches(True))
    first = small(noise=(0.0, 30 / 255))
    keep = ModelCheckpoint(dirpath=tmp_path, filename="first")
    make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[keep]).fit(first, batches(True))
    second = small(noise=(0.0, 30 / 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(max_epochs=2).fit(second, batches(True), ckpt_path=str(tmp_path / "first.ckpt"))
    loaded = RidgeRegularizerDenoiser.load_from_checkpoint(tmp_path / "first.ckpt")
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, second.state_dict()[name]), name
        assert torch.equal(loaded.state_dict()[name], first.state_dict()[name]), name
    assert loaded.hparams["noise"] == [0.0, 30 / 255]


@pytest.mark.parametrize("training", ["equilibrium", "steps"])
def test_mixed_precision_leaves_the_minimizer_in_float32(make_trainer: Make, training: Any) -> None:
    model = small(training=training)
    make_trainer(precision="bf16-mixed", limit_train_batches=2, limit_val_batches=1).fit(model, batches(), batches())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_averaged_weights_keep_the_bounds(make_trainer: Make) -> None:
    model = small()
    make_trainer(max_epochs=4, callbacks=[EMAWeightAveraging(decay=0.9)]).fit(model, batches())
    assert model.weak_convexity() <= 1 + 1e-5


def test_wrong_images_are_refused() -> None:
    model = small().eval()
    with pytest.raises(DataError, match="divide bytes by 255"):
        model(255 * pieces(1))
    with pytest.raises(DtypeError):
        model((255 * pieces(1)).byte())
    with pytest.raises(ShapeError, match=r"expected \(batch, 1, height, width\)"):
        model(pieces(1)[0])
    with pytest.raises(ShapeError, match="2 noise levels for 3 images"):
        model(pieces(3), torch.tensor([0.1, 0.1]))


def test_noise_levels_are_asked_for_and_warned_about() -> None:
    model = small(noise=(0.0, 30 / 255)).eval()
    with pytest.raises(ConfigError, match="say which one these images have"):
        model(pieces(1))
    with pytest.warns(TrainingWarning, match="outside the trained range"):
        model(pieces(1), 50 / 255)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weak_convexity": 1.5}, "not convex"),
        ({"training": "magic"}, "'equilibrium' or 'steps'"),
        ({"steps": 0}, "at least 1"),
        ({"scaled": False, "noise": (0.0, 0.1)}, "scaled=True"),
        ({"optimizer": "badmm", "loss": SquaredError()}, "is a loop"),
        ({"activation": "relu"}, "is no spline"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**wrong)
