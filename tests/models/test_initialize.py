"""Models that learn their start from training data: when fit begins, by hand, and not again on resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.data import Digits, ResumableLoader
from morphlightning.errors import ConfigError, DataError
from morphlightning.layers import Dilation, Erosion
from morphlightning.models import MorphologicalAutoencoder, MorphologicalClassifier, PluginTraining

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
SHAPE = (1, 8, 8)
Make = Callable[..., L.Trainer]


class Regression(PluginTraining):
    """A purely morphological network."""

    def __init__(self, initializer: Any = "residual", units: int = 10) -> None:
        super().__init__(nn.functional.mse_loss, {"name": "sgd", "lr": 0.1})
        self.declare({"initializer": initializer, "units": units}, initializer="initializers")
        self.network = Dilation(20, units, initializer=initializer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def evaluate(self, batch: Any, stage: str) -> None:
        self.log(f"{stage}/loss", self.data_loss(self(batch[0]), batch[1]))


class Losses(Callback):
    """Keeps the training loss of each batch."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.kept.append(float(trainer.callback_metrics["train/loss_step"]))


def realisable(count: int = 2000) -> TensorDataset:
    """A dilation with weights U(-0.5, 0) of inputs U(0, 1)."""
    generator = torch.Generator().manual_seed(1)
    teacher = Dilation(20, 10, generator=generator).requires_grad_(False)
    teacher.weight.copy_(-0.5 * torch.rand(10, 20, generator=generator))
    x = torch.rand(count, 20, generator=generator)
    return TensorDataset(x, teacher(x))


def classifier(seed: int = 0, **settings: Any) -> MorphologicalClassifier:
    torch.manual_seed(seed)
    given = {"channels": (), "hidden": (12,), "initializer": "prototype", "optimizer": {"name": "adam", "lr": 0.01}}
    return MorphologicalClassifier(SHAPE, **given | settings)


def digits(**settings: Any) -> Digits:
    return Digits(**{"batch_size": 64, "train_size": 256} | settings)


def test_a_realisable_target_is_met_from_the_first_step(make_trainer: Make) -> None:
    losses = Losses()
    loader = DataLoader(realisable(), 50, shuffle=True, generator=torch.Generator().manual_seed(0))
    make_trainer(callbacks=[losses]).fit(Regression(), loader)
    assert max(losses.kept) < 1e-14
    plain = Losses()
    make_trainer(callbacks=[plain]).fit(Regression("upper"), loader)
    assert plain.kept[0] > 1e-2


def test_fit_begins_with_what_initialize_gives(make_trainer: Make) -> None:
    by_fit, by_hand = classifier(), classifier()
    state = torch.get_rng_state()
    assert by_hand.initialize(digits()) == ["backbone.1.morph1.dilation", "backbone.1.morph1.erosion"]
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.stack([x for x, _ in digits_set()]).flatten(1)
    morph = by_hand.backbone[1].morph1
    assert all((row == images).all(1).any() for row in -morph.dilation.weight)
    assert all((row == images).all(1).any() for row in morph.erosion.weight)
    assert by_hand.initialize(digits()) == []
    for model in (by_fit, by_hand):  # the order of training is the same, too
        make_trainer(max_epochs=2).fit(model, digits())
    ends = by_fit.state_dict(), by_hand.state_dict()
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    assert ends[0]["backbone.1.morph1.dilation.initialized"]


def digits_set() -> Any:
    data = digits()
    data.setup("fit")
    return data.train_dataloader().dataset


def test_the_state_of_a_loader_and_random_numbers_are_left_alone(make_trainer: Make) -> None:
    loader = ResumableLoader(realisable(64), 16, seed=2)
    iterator = iter(loader)
    next(iterator)
    before = loader.state_dict()
    Regression().initialize(loader)
    assert loader.state_dict() == before

    class Drawing(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + 0.01 * torch.randn(20), y

    model, state = Regression(), torch.get_rng_state()
    model.initialize(DataLoader(Drawing(*realisable(64).tensors), 16, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_resumes_bit_for_bit_and_does_not_begin_anew(make_trainer: Make, tmp_path: Path) -> None:
    def run(keep: list[ModelCheckpoint], seed: int, **resume: Any) -> dict[str, Tensor]:
        # a resumed run reads other training data at its start: did it initialize again, it would end elsewhere
        model = classifier(seed, diagnostics=["gradient_density"])
        trainer = make_trainer(max_epochs=2, callbacks=list(keep), enable_checkpointing=bool(keep))
        trainer.fit(model, digits(task="classification"), **resume)
        assert trainer.global_step == 8
        return model.state_dict()

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    straight = run([every], 0)
    for step in (1, 3, 4, 7):
        resumed = run([], 5, ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == [], step


def test_a_loaded_model_is_not_initialized_again(make_trainer: Make, tmp_path: Path) -> None:
    trainer, model = make_trainer(max_steps=2), classifier()
    trainer.fit(model, digits())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = MorphologicalClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.initialize(digits()) == []
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    for name in [name for name in checkpoint["state_dict"] if name.endswith("initialized")]:
        del checkpoint["state_dict"][name]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert MorphologicalClassifier.load_from_checkpoint(tmp_path / "old.ckpt").initialize(digits()) == []


@pytest.mark.parametrize("settings", [{"limit_train_batches": 2}, {"fast_dev_run": 2}, {}])
def test_the_number_of_batches_is_capped(make_trainer: Make, settings: dict[str, Any]) -> None:
    read: list[int] = []

    class Reading(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            if model.network.awaits_data:
                read.append(index)
            return super().__getitem__(index)

    model = Regression()
    if not settings:
        model.max_initialize_batches = 2
    make_trainer(**settings).fit(model, DataLoader(Reading(*realisable(200).tensors), 20))
    once = [index for index in read if read.count(index) == 1]
    assert len(read) == 60  # the order of calls from the first batch, then a pass
    assert len(once) == 20


class Hidden(PluginTraining):
    """Its first layer is hidden; the model knows what it wants of it."""

    def __init__(self) -> None:
        super().__init__(nn.functional.mse_loss, "sgd")
        self.first = Dilation(20, 20, initializer="residual")
        self.second = Erosion(20, 10, initializer="residual")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y

    def evaluate(self, batch: Any, stage: str) -> None: ...

    def site_target(self, name: str, batch: Any) -> Tensor | None:
        return batch[0] if name == "first" else None  # pass the inputs on


def test_a_model_says_what_hidden_layers_should_give() -> None:
    model, data = Hidden(), realisable(500)
    assert model.initialize(DataLoader(data, 50)) == ["first", "second"]
    model.eval()
    with torch.no_grad():
        x, y = data.tensors
        torch.testing.assert_close(model.first(x), x)
        assert (model(x) >= y - 1e-6).all()


def test_bad_input(make_trainer: Make) -> None:
    with pytest.raises(ConfigError, match=r"'backbone.1.morph1.dilation' learns from pairs.*site_target"):
        make_trainer().fit(classifier(initializer="residual"), digits())
    with pytest.raises(ConfigError, match=r"'network.encoder.morph.dilation' learns from pairs"):
        MorphologicalAutoencoder(SHAPE, channels=(), initializer="residual").initialize(digits(task="denoising"))
    with pytest.raises(DataError, match="no batch to initialize from"):
        Regression().initialize([])
    with pytest.raises(DataError, match="hold no targets"):
        Regression().initialize(DataLoader(TensorDataset(torch.rand(8, 20)), 4))
    with pytest.raises(ConfigError, match=r"Dilation: initializer .* waits for data"):
        Regression()(torch.rand(8, 20))


def test_double_precision(make_trainer: Make) -> None:
    losses, model = Losses(), Regression()
    make_trainer(precision="64-true", callbacks=[losses]).fit(model, DataLoader(realisable(), 50))
    assert model.network.weight.dtype == torch.float64
    assert max(losses.kept) < 1e-12  # targets in float32
