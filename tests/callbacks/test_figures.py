from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset, TensorDataset

from morphlightning.callbacks import ConfusionMatrix, LearningCurves, Reconstructions, StructuringFunctions
from morphlightning.callbacks.figures import base, weights
from morphlightning.callbacks.figures.confusion import draw_confusion
from morphlightning.callbacks.figures.curves import by_metric, draw_curves
from morphlightning.callbacks.figures.reconstructions import draw_samples
from morphlightning.callbacks.figures.structuring import draw_layer
from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation, Dilation1d, Dilation2d, Dilation3d, MorphLayer, MorphPool2d

IMAGES = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3


class Classifier(LightningModule):
    """Draws random numbers in every forward pass, evaluation included."""

    in_shape, num_classes = (1, 6, 6), 3

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(Dilation2d(1, 2), MorphPool2d(2), nn.Flatten(), nn.Dropout(), Dilation(18, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x + 0.01 * torch.rand_like(x))
        return y

    def measure(self, batch: Any, stage: str) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.measure(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.measure(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.measure(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


class Autoencoder(Classifier):
    num_classes = 0

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(Dilation2d(1), nn.Conv2d(1, 1, 3, padding=1))

    def measure(self, batch: Any, stage: str) -> Tensor:
        loss = mse_loss(self(batch[0]), batch[1])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True)
        return loss


class Baseline(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def loader(target: Tensor = LABELS) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, target), batch_size=4)


def trainer(folder: Path, *callbacks: Callback, logger: bool = False, **options: Any) -> Trainer:
    options = {"max_epochs": 3, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, "log") if logger else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.parent.name == "figures")


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    pieces = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    pieces += [text.get_text() for axis in figure.axes for text in (*axis.texts, axis.title)]
    return "\n".join(pieces)


# ------------------------------------------------------------------------------------------------ whole runs
def test_a_classifier_gets_its_figures_in_files_and_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit = trainer(tmp_path, StructuringFunctions(2), ConfusionMatrix(2), LearningCurves(), logger=True)
    model = Classifier()
    fit.fit(model, loader(), loader())
    fit.test(model, loader(), verbose=False)
    layers = [f"structuring_functions-network.{layer}" for layer in (0, 1, 4)]
    moments = ["epoch=000-step=000000", "epoch=001-step=000008", "epoch=002-step=000012"]
    expected = [f"{layer}-{moment}.png" for layer in layers for moment in moments]
    expected += [f"confusion_matrix-val-{moment}.png" for moment in moments[1:]]
    expected += ["confusion_matrix-test.png", "learning_curves-epoch=002-step=000012.png"]
    assert files(tmp_path) == sorted(expected)
    run = Path(fit.logger.log_dir)
    assert {path.parent for path in tmp_path.rglob("*.png")} == {run / "figures"}
    for path in run.rglob("*.png"):
        picture = imread(path)
        assert picture.shape[1] >= 480
        assert picture.std() > 0.02
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("figures/structuring_functions/network.4")] == [0, 8, 12]
    assert [image.step for image in events.Images("figures/confusion_matrix/val")] == [8, 12]
    assert {"figures/learning_curves", "figures/confusion_matrix/test"} <= set(events.Tags()["images"])


def test_an_autoencoder_gets_its_reconstructions(tmp_path: Path) -> None:
    fit, model = trainer(tmp_path, Reconstructions(n=3, every_n_epochs=2), max_epochs=4), Autoencoder()
    fit.fit(model, loader(IMAGES), loader(IMAGES))
    fit.validate(model, loader(IMAGES), verbose=False)
    fit.test(model, loader(IMAGES), verbose=False)
    stems = ["test", "val", "val-epoch=001-step=000008", "val-epoch=003-step=000016"]
    assert files(tmp_path) == sorted(f"reconstructions-{stem}.png" for stem in stems)


class StopAfter(Callback):
    """Ends the training early, as EarlyStopping does."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def test_the_last_state_is_drawn_after_an_early_stop(tmp_path: Path) -> None:
    fit = trainer(tmp_path, StopAfter(), Reconstructions(1, 10), StructuringFunctions(10), max_epochs=9)
    fit.fit(Autoencoder(), loader(IMAGES), loader(IMAGES))
    assert files(tmp_path) == [
        "reconstructions-val-epoch=001-step=000008.png",
        "structuring_functions-network.0-epoch=000-step=000000.png",
        "structuring_functions-network.0-epoch=001-step=000008.png",
    ]


@pytest.mark.parametrize("kind", [Classifier, Autoencoder])
def test_training_is_not_changed(tmp_path: Path, kind: type[Classifier]) -> None:
    target = LABELS if kind is Classifier else IMAGES
    own = ConfusionMatrix() if kind is Classifier else Reconstructions(2)
    results = []
    for callbacks in ([], [StructuringFunctions(1), own, LearningCurves()]):
        seed_everything(3, verbose=False)
        model, fit = kind(), trainer(tmp_path / str(len(callbacks)), *callbacks)
        shuffled = DataLoader(TensorDataset(IMAGES, target), batch_size=4, shuffle=True)
        fit.fit(model, shuffled, loader(target))
        random = torch.get_rng_state()
        metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
        results.append((model.state_dict(), random, metrics, np.random.get_state()[1], model.training))
    (state, random, metrics, numpy_state, training), drawn = results
    assert all(torch.equal(state[name], drawn[0][name]) for name in state)
    assert torch.equal(random, drawn[1])
    assert metrics == drawn[2]
    assert (numpy_state == drawn[3]).all()
    assert training == drawn[4]


def test_fast_dev_run_draws_and_writes_nothing(tmp_path: Path) -> None:
    callbacks = [StructuringFunctions(), ConfusionMatrix(), LearningCurves()]
    trainer(tmp_path, *callbacks, fast_dev_run=True).fit(Classifier(), loader(), loader())
    assert not list(tmp_path.rglob("*.png"))


def test_a_second_run_in_the_same_folder_overwrites_nothing(tmp_path: Path) -> None:
    kept = set()
    for _ in range(2):
        trainer(tmp_path, ConfusionMatrix(), max_epochs=1).fit(Classifier(), loader(), loader())
        kept.add((tmp_path / "figures/confusion_matrix-val-epoch=000-step=000004.png").read_bytes())
    assert len(kept) == 1

    stem = "confusion_matrix-val-epoch=000-step=000004"
    assert files(tmp_path) == [f"{stem}-v1.png", f"{stem}.png"]


def test_a_full_disk_is_a_warning_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base, "imsave", full)
    fit = trainer(tmp_path, ConfusionMatrix(), max_epochs=1)
    with pytest.warns(
        UserWarning, match=r"confusion_matrix-val-epoch=000-step=000004.png was not written.*No space left"
    ):
        fit.fit(Classifier(), loader(), loader())
    assert fit.global_step == 4
    assert files(tmp_path) == []


# ---------------------------------------------------------------------------------------------- what is missing
@pytest.mark.parametrize(
    ("callback", "model", "target", "message"),
    [
        (Reconstructions(), Classifier(), LABELS, r"input, output and target are \(4, 1, 6, 6\), \(4, 3\) and \(4,\)"),
        (ConfusionMatrix(), Autoencoder(), IMAGES, "neither the data module nor Autoencoder says how many classes"),
        (ConfusionMatrix(num_classes=5), Classifier(), LABELS, r"forward gave \(4, 3\).*expected logits \(B, 5\)"),
        (ConfusionMatrix(num_classes=3), Autoencoder(), IMAGES, "This callback is for classifiers"),
        (ConfusionMatrix(class_names=["a", "b"]), Classifier(), LABELS, "2 class_names for 3 classes"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    tmp_path: Path, callback: Callback, model: LightningModule, target: Tensor, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, callback).fit(model, loader(target), loader(target))


class Named(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {"image": IMAGES[i], "label": LABELS[i]}


def test_a_batch_that_is_no_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Reconstructions: a batch is dict, expected a pair"):
        base.pair_of(Reconstructions(), next(iter(DataLoader(Named()))))
    with pytest.raises(ConfigError, match=r"a batch is list of Tensor, str"):
        base.pair_of(Reconstructions(), [IMAGES, "label"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Reconstructions(n=0), "n must be 1 or more, got 0"),
        (lambda: Reconstructions(data_range=0), "data_range must be"),
        (lambda: Reconstructions(every_n_epochs=0), "Reconstructions: every_n_epochs must be 1 or more, got 0"),
        (lambda: StructuringFunctions(max_units=0), "max_units must be 1 or more"),
        (lambda: ConfusionMatrix(num_classes=1), "num_classes must be 2 or more"),
    ],
)
def test_arguments_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_model_without_morphology_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Baseline holds no morphlightning\.layers\.MorphLayer"):
        trainer(tmp_path, StructuringFunctions(), max_epochs=1).fit(Baseline(), loader(), loader())
    assert files(tmp_path) == []


class Silent(Baseline):
    def measure(self, batch: Any, stage: str) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("error", loss)
        return loss


def test_no_curve_is_a_warning_that_says_what_was_logged(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"train/<metric>.*Logged was: error"):
        trainer(tmp_path, LearningCurves(), max_epochs=1).fit(Silent(), loader(), loader())


# ---------------------------------------------------------------------------------------------- learning curves
def test_curves_of_a_resumed_run_are_those_of_a_straight_one(tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None) -> tuple[LearningCurves, Path]:
        seed_everything(0, verbose=False)
        curves, saved = LearningCurves(), tmp_path / ("straight" if epochs == 4 and resume is None else "broken")
        model = Baseline()
        model.forward = model.network.forward  # type: ignore[method-assign]
        keep = ModelCheckpoint(saved, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
        trainer(saved, curves, keep, max_epochs=epochs, enable_checkpointing=True).fit(
            model, loader(), loader(), ckpt_path=resume, weights_only=True
        )
        return curves, saved / "last.ckpt"

    straight, _ = fit(4)
    half, checkpoint = fit(2)
    resumed, _ = fit(4, checkpoint)
    assert resumed.history == straight.history
    assert [point[0] for point in half.history["val/loss"]] == [1, 2]
    assert [point[0] for point in straight.history["train/loss"]] == [1, 2, 3, 4]


def test_validation_within_an_epoch_has_its_place_in_the_epoch(tmp_path: Path) -> None:
    curves = LearningCurves()
    trainer(tmp_path, curves, max_epochs=2, val_check_interval=0.5).fit(Classifier(), loader(), loader())
    assert [point[0] for point in curves.history["val/loss"]] == [0.5, 1, 1.5, 2]


def test_a_new_fit_starts_new_curves(tmp_path: Path) -> None:
    curves = LearningCurves()
    for _ in range(2):
        trainer(tmp_path, curves, max_epochs=1).fit(Classifier(), loader(), loader())
    assert [len(points) for points in curves.history.values()] == [1, 1]


def test_one_panel_a_metric_the_loss_first() -> None:
    points = [[1.0, 0.5], [2.0, math.nan]]
    names = ["val/accuracy", "train/loss_epoch", "train/accuracy", "val_loss", "lr"]
    panels = by_metric(dict.fromkeys(names, points))
    assert {metric: set(curves) for metric, curves in panels.items()} == {
        "loss": {"train", "val"},
        "accuracy": {"train", "val"},
    }
    assert next(iter(panels)) == "loss"
    figure = draw_curves(panels)
    assert [axis.get_title() for axis in figure.axes] == ["loss", "accuracy"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [0.5, 0.5]


# ----------------------------------------------------------------------------------------- the figures themselves
def layer_image(figure: Figure, axis: int) -> np.ma.MaskedArray[Any, Any]:
    return figure.axes[axis].images[0].get_array()


def test_windows_are_drawn_with_missing_weights_origin_and_one_symmetric_scale() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 0] = False
    layer = Dilation2d(2, mask=mask, initializer={"name": "uniform", "low": -0.2, "high": 0.1})
    figure = draw_layer("stage", layer, when="epoch 3, step 120")
    for unit in range(2):
        shown = layer_image(figure, unit)
        assert shown.mask.sum() == 1
        assert shown.mask[0, 0]
        assert torch.equal(torch.tensor(shown.data)[mask], layer.weight[unit, 0].detach()[mask])
        low, high = figure.axes[unit].images[0].get_clim()
        assert (low, high) == (-high, pytest.approx(layer.weight.abs()[:, :, mask].max().item()))
        assert figure.axes[unit].lines[0].get_xydata().tolist() == [[1, 1]]
    assert "stage: Dilation2d (dilation), weight 2 x 1 x 3 x 3\nepoch 3, step 120" in texts(figure)
    assert "hatched: missing" in texts(figure)


@pytest.mark.parametrize(
    ("layer", "origin"),
    [
        (Dilation2d(1, kernel_size=(4, 5)), [2, 2]),
        (MorphPool2d(1), [0, 0]),
        (MorphPool2d(1, 5, 2, 2), [2, 2]),
        (MorphPool2d(1, 5, 2, 2, dilation=2), [1, 1]),
    ],
)
def test_the_origin_is_marked_where_the_operator_has_it(layer: MorphLayer, origin: list[int]) -> None:
    x = torch.zeros(1, 1, 12, 12)
    with torch.no_grad():  # with a peak at the origin alone, values stay where they are
        layer.weight.fill_(-9)
        layer.weight[0, 0, origin[0], origin[1]] = 0
    x[0, 0, 4, 6] = 1
    peak = (layer(x)[0, 0] == 1).nonzero().tolist()
    stride = 1 if isinstance(layer, Dilation2d) else 2
    assert peak == [[4 // stride, 6 // stride]]
    marked = draw_layer("layer", layer).axes[0].lines[0].get_xydata().tolist()
    assert marked == [[origin[1], origin[0]]]


def test_dense_layers_that_see_the_image_are_drawn_in_its_shape() -> None:
    layer = Dilation(2 * 3 * 4, 5)
    figure = draw_layer("dense", layer, in_shape=(2, 3, 4))
    weight = layer.weight.detach().view(5, 2, 3, 4)
    titles = [axis.get_title() for axis in figure.axes[:10]]
    for axis, title in enumerate(titles):
        channel, unit = (int(number) for number in title.split(" → "))
        assert torch.equal(torch.tensor(layer_image(figure, axis).data), weight[unit, channel])
    assert len(set(titles)) == 10
    one_channel = draw_layer("dense", Dilation(12, 5), in_shape=(2, 3, 4))
    assert layer_image(one_channel, 4).shape == (3, 4)
    assert "as an image, 3 x 4" in texts(one_channel)


def test_other_dense_layers_are_one_heat_map() -> None:
    layer = Dilation(7, 5)
    figure = draw_layer("dense", layer, in_shape=(1, 3, 4))
    assert torch.equal(torch.tensor(layer_image(figure, 0).data), layer.weight.detach())
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("input", "unit")


@pytest.mark.parametrize("most", [1, 2, 5, 16, 100])
@pytest.mark.parametrize(("units", "channels"), [(1, 1), (30, 1), (30, 2), (2, 30), (30, 30), (3, 4)])
def test_no_more_units_are_drawn_than_asked_for(units: int, channels: int, most: int) -> None:
    shown, rows, columns = weights.choose(units, channels, most)
    assert 1 <= len(shown) == len(set(shown)) <= min(most, rows * columns)
    assert columns <= weights.COLUMNS
    assert all(unit < units and channel < channels for unit, channel in shown)


def test_signals_are_stems_over_the_offset_and_volumes_show_their_middle() -> None:
    mask = torch.tensor([True, True, False, True, True])
    signal = Dilation1d(1, kernel_size=5, mask=mask)
    axis = draw_layer("signal", signal).axes[0]
    points = next(line for line in axis.lines if line.get_marker() == "o").get_xydata()
    assert points[:, 0].tolist() == [-2, -1, 1, 2]
    assert torch.equal(torch.tensor(points[:, 1]).float(), signal.weight[0, 0].detach()[mask])
    assert axis.get_ylim()[0] == -axis.get_ylim()[1]
    volume = Dilation3d(1, kernel_size=3)
    figure = draw_layer("volume", volume)
    assert torch.equal(torch.tensor(layer_image(figure, 0).data), volume.weight[0, 0, 1].detach())
    assert "slice 1 along depth" in texts(figure)


def test_weights_that_are_all_zero_or_not_finite_can_be_drawn() -> None:
    layer = Dilation2d(1, initializer="zeros")
    assert draw_layer("zeros", layer).axes[0].images[0].get_clim() == (-1, 1)
    layer.weight.data[:] = math.nan
    assert base.render(draw_layer("nan", layer)).std() > 0


def test_reconstructions_show_psnr_error_and_colour() -> None:
    target = torch.rand(2, 3, 4, 5)
    inputs, output = target + 0.1, (target - 0.01).clamp(0, 1)
    figure = draw_samples(inputs, output, target)
    mse = ((inputs.clamp(0, 1) - target) ** 2).mean((1, 2, 3))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == [f"{-10 * math.log10(float(error)):.1f} dB" for error in mse]
    assert figure.axes[4].images[0].get_array().shape == (4, 5, 3)
    error = torch.tensor(np.asarray(figure.axes[6].images[0].get_array()))
    assert torch.allclose(error, (output - target)[0].mean(0))
    low, high = figure.axes[6].images[0].get_clim()
    assert low == -high
    same = draw_samples(target[:, :1], target[:, :1], target[:, :1])
    assert same.axes[2].get_title() == "exact"


def test_a_confusion_matrix_shows_counts_and_recall() -> None:
    figure = draw_confusion(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ["cat", "dog", "emu"], "Test")
    text = [piece.get_text() for axis in figure.axes[:2] for piece in axis.texts]
    assert text == ["3", "1", "2", "2", "75 %", "none", "50 %"]
    assert figure.get_suptitle() == "Test\naccuracy 62.5 % of 8 samples"
    large = draw_confusion(torch.eye(60, dtype=torch.long), [str(k) for k in range(60)])
    assert not large.axes[0].texts
    assert base.render(large).shape[0] > 500


# ------------------------------------------------------------------------------------------------ two processes
SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_figures import Classifier, loader
from morphlightning.callbacks import ConfusionMatrix, LearningCurves, RankAgreement, StructuringFunctions
from morphlightning.callbacks.figures import confusion

draw = confusion.draw_confusion

def counted(counts, *rest):
    print("samples", int(counts.sum()), flush=True)
    return draw(counts, *rest)

confusion.draw_confusion = counted
callbacks = [RankAgreement(), StructuringFunctions(), ConfusionMatrix(), LearningCurves()]
trainer = Trainer(accelerator="cpu", strategy="ddp", devices=2, max_epochs=1, callbacks=callbacks, logger=False,
    default_root_dir={folder!r}, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
model = Classifier()
trainer.fit(model, loader(), loader())
"""


def test_two_processes_draw_once_and_count_all_samples(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples 16") == done.stdout.count("samples") == 1
    layers = (f"structuring_functions-network.{layer}" for layer in (0, 1, 4))
    expected = [f"{layer}-epoch=000-step={step:06d}.png" for layer in layers for step in (0, 2)]
    expected += [f"{name}-epoch=000-step=000002.png" for name in ("confusion_matrix-val", "learning_curves")]
    assert files(tmp_path) == sorted(expected)
