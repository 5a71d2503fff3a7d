from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from morphlightning.data import Digits
from morphlightning.errors import ConfigError, DtypeError, ShapeError
from morphlightning.layers import MorphLayer
from morphlightning.metrics import DilationCommutation
from morphlightning.models import MorphologicalAutoencoder
from morphlightning.models.autoencoder import _ssim_sigma

SHAPE = (1, 8, 8)
Make = Callable[..., L.Trainer]
FAST = {"name": "adam", "lr": 0.01}
NETS: dict[str, dict[str, Any]] = {
    "convolutional": {"channels": (8, 8)},
    "dense": {"channels": (), "hidden": 20, "code": 16},
    "parts": {"channels": (), "hidden": 20, "code": 16, "parts": True, "code_sparsity": 0.01},
}


def digits(task: str = "denoising", **settings: Any) -> Digits:
    return Digits(**{"batch_size": 64, "train_size": 256, "task": task} | settings)


def small(**settings: Any) -> MorphologicalAutoencoder:
    return MorphologicalAutoencoder(SHAPE, **{"channels": (4,), "optimizer": FAST} | settings)


@pytest.mark.parametrize("task", ["denoising", "inpainting", "reconstruction"])
@pytest.mark.parametrize("name", NETS)
def test_every_net_learns_every_task(make_trainer: Make, name: str, task: str) -> None:
    model, data, trainer = small(**NETS[name]), digits(task), make_trainer(max_epochs=8)
    (before,) = trainer.test(model, data, verbose=False)
    trainer.fit(model, data)
    (after,) = trainer.test(model, data, verbose=False)
    expected = {"test/loss", "test/psnr", "test/ssim", "test/mse"}
    assert set(after) == expected | ({"test/dilation_commutation"} if name == "parts" else set())
    assert after["test/mse"] < 0.6 * before["test/mse"]
    assert after["test/psnr"] > before["test/psnr"] + 2


@pytest.mark.parametrize("channels", [(4,), (8, 4), (16, 8, 32)])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 3, 9, 13)])
def test_convolutional_stages_of_any_width_take_images_of_any_size(
    channels: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    model = MorphologicalAutoencoder((3, 8, 8), channels=channels)
    assert model(torch.rand(shape)).shape == shape


# ---------------------------------------------------------------------------------------------------- metrics
def reference_ssim(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    """Wang et al. over the whole image, mirrored at the border."""

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma, mode="mirror", truncate=3.5)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


@pytest.mark.parametrize("side", [8, 28])
def test_metrics_are_those_of_the_field(make_trainer: Make, side: int) -> None:
    torch.manual_seed(1)
    shape = (1, side, side)
    model = MorphologicalAutoencoder(shape, channels=(4,)).eval()
    clean = torch.rand(20, *shape).round()
    noisy = clean + 0.1 * torch.randn_like(clean)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noisy, clean), batch_size=8)
    (metrics,) = make_trainer().test(model, loader, verbose=False)
    with torch.no_grad():
        output = model(noisy).clamp(0, 1).double().numpy()[:, 0]
    pairs = list(zip(clean.double().numpy()[:, 0], output, strict=True))
    mean = {
        "psnr": np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]),
        "mse": np.mean([mean_squared_error(a, b) for a, b in pairs]),
        "ssim": np.mean([reference_ssim(a, b, _ssim_sigma(side)) for a, b in pairs]),
    }
    for name, value in mean.items():
        assert metrics[f"test/{name}"] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_the_reference_for_ssim_is_that_of_skimage_away_from_the_border() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 28, 28))
    _, full = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    inner = structural_similarity(a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert inner == pytest.approx(full[5:-5, 5:-5].mean())
    assert reference_ssim(a, b, 1.5) == pytest.approx(full.mean(), abs=0.02)


@pytest.mark.parametrize(("side", "window"), [(3, 3), (5, 5), (8, 7), (11, 11), (28, 11)])
def test_the_window_of_ssim_fits_into_the_image(side: int, window: int) -> None:
    assert int(3.5 * _ssim_sigma(side) + 0.5) * 2 + 1 == window


def test_commutation_is_that_of_the_whole_set(make_trainer: Make) -> None:
    model, data = small(**NETS["parts"]), digits(batch_size=50)
    (metrics,) = make_trainer().test(model, data, verbose=False)
    inputs, targets = map(torch.cat, zip(*data.test_dataloader(), strict=True))
    reference = DilationCommutation()
    with torch.no_grad():
        reference.update(model.network.encode(inputs), model.network.atoms, targets)
    assert metrics["test/dilation_commutation"] == pytest.approx(reference.compute().item(), rel=1e-4)


# ------------------------------------------------------------------------------------------------------ parts
class Projected(Callback):
    """Atoms are non-negative after every step, and training would have made some negative."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        assert (pl_module.network.decoder.weight >= 0).all()
        self.steps += 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "signum"])
def test_codes_and_atoms_stay_non_negative(make_trainer: Make, optimizer: str) -> None:
    model, projected = small(**NETS["parts"] | {"optimizer": {"name": optimizer, "lr": 0.05}}), Projected()
    make_trainer(callbacks=[projected]).fit(model, digits())
    assert projected.steps == 4
    atoms = model.network.atoms
    assert atoms.shape == (16, *SHAPE)
    assert (atoms == 0).any()
    code = model.network.encode(torch.rand(5, *SHAPE))
    assert (code >= 0).all()
    x = torch.rand(3, *SHAPE)
    combined = torch.einsum("nk,kchw->nchw", model.network.encode(x), atoms)
    torch.testing.assert_close(model(x), combined)


def test_code_sparsity_is_part_of_the_loss_and_makes_codes_sparser(make_trainer: Make) -> None:
    def trained(amount: float) -> tuple[float, L.Trainer]:
        torch.manual_seed(0)
        model = small(**NETS["parts"] | {"code_sparsity": amount})
        trainer = make_trainer(max_epochs=6)
        trainer.fit(model, digits())
        copy.deepcopy(model)  # no graph is left behind
        return model.network.encode(torch.rand(20, *SHAPE)).mean().item(), trainer

    plain, without = trained(0.0)
    sparse, with_term = trained(0.3)
    assert 0 < sparse < 0.5 * plain
    assert "regularizer/code_sparsity" not in without.logged_metrics
    assert with_term.logged_metrics["regularizer/code_sparsity"] > 0


def test_the_sparsity_term_is_that_of_the_code_of_this_batch(make_trainer: Make) -> None:
    model = small(**NETS["parts"] | {"code_sparsity": 0.5, "heuristic": "count_normalized"})
    inputs, target = torch.rand(4, *SHAPE), torch.rand(4, *SHAPE)
    model.log = lambda *args, **kwargs: None
    trainer = make_trainer(max_steps=1)
    trainer.strategy.connect(model)
    model.trainer = trainer
    total = model.loss(model(inputs), target, inputs)
    expected = torch.nn.functional.mse_loss(model.network(inputs), target) + 0.5 * model.network.encode(inputs).mean()
    torch.testing.assert_close(total, expected)


# ------------------------------------------------------------------------------------- checkpoints, predictions
@pytest.mark.parametrize("name", NETS)
def test_load_from_checkpoint(make_trainer: Make, tmp_path: Path, name: str) -> None:
    model, trainer = small(**NETS[name], regularizers=["l1"]), make_trainer(max_steps=1)
    trainer.fit(model, digits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MorphologicalAutoencoder.load_from_checkpoint(tmp_path / "model.ckpt")
    x = torch.rand(3, *SHAPE)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.hparams == model.hparams
    assert again.hparams.channels == list(NETS[name]["channels"])


def test_predictions_are_images(make_trainer: Make) -> None:
    model, data = small(), digits()
    predicted = torch.cat(make_trainer().predict(model, data))
    assert predicted.shape == (359, *SHAPE)
    assert predicted.min() >= 0
    assert predicted.max() <= 1


@pytest.mark.parametrize("name", NETS)
def test_model_summary_runs_the_example_input(make_trainer: Make, name: str) -> None:
    make_trainer(max_steps=1, enable_model_summary=True).fit(small(**NETS[name]), digits())


@pytest.mark.parametrize("name", ["dense", pytest.param("convolutional", marks=pytest.mark.slow)])
def test_torch_compile(name: str) -> None:
    model = small(**NETS[name] | {"code_sparsity": 0.0}).eval()
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


def test_layers_take_the_named_components() -> None:
    for name in NETS:
        model = small(**NETS[name], derivative={"name": "uniform", "eps": 0.1}, initializer="zeros")
        layers = [module for module in model.modules() if isinstance(module, MorphLayer)]
        assert layers
        assert all(layer.pipeline.policy.rule.eps == 0.1 and not layer.weight.any() for layer in layers)


def test_losses() -> None:
    x, y = torch.rand(2, *SHAPE), torch.rand(2, *SHAPE)
    assert torch.equal(small(loss="l1_loss").data_loss(x, y), (x - y).abs().mean())
    with pytest.raises(ConfigError, match="choose one of mse_loss, l1_loss, smooth_l1_loss, huber_loss"):
        small(loss="cross_entropy")


# -------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": True}, "parts and code_sparsity belong to the dense one; set channels=()"),
        ({"code_sparsity": 0.1}, "parts and code_sparsity belong to the dense one"),
        ({"channels": (), "code_sparsity": -1.0}, "code_sparsity must be >= 0"),
        ({"channels": (), "code": 0}, "code=0, expected positive integers"),
        ({"channels": (), "hidden": 0}, "hidden=0, expected positive integers"),
        ({"channels": (0,)}, r"channels=\(0,\), expected positive integers"),
        ({"in_shape": (1, 2, 8)}, "expected images of at least 3x3 pixels"),
        ({"in_shape": (64,)}, r"expected \(channels, height, width\)"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MorphologicalAutoencoder(**{"in_shape": SHAPE} | settings)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (2, 64)])
def test_wrong_image_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(batch, 1, height, width\).*in_shape=\(1, 8, 8\)"):
        small(**NETS[name])(torch.rand(shape))


def test_the_dense_one_takes_its_own_size_alone() -> None:
    with pytest.raises(ShapeError, match=r"x has shape \(2, 1, 9, 9\)"):
        small(**NETS["dense"])(torch.rand(2, 1, 9, 9))


def test_integer_images() -> None:
    with pytest.raises(DtypeError, match=r"x is torch.uint8"):
        small()(torch.zeros(2, *SHAPE, dtype=torch.uint8))


def test_gradients_reach_every_parameter() -> None:
    def untouched(model: MorphologicalAutoencoder) -> list[str]:
        x: Tensor = torch.rand(8, *SHAPE)
        model(x).square().mean().backward()
        return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]

    for name in NETS:
        assert untouched(small(**NETS[name])) == [], name
