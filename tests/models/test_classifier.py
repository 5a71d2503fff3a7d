from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from morphlightning_plugins.derivatives import Bouligand
from morphlightning_plugins.regularizers import L1
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.data import Digits
from morphlightning.errors import (
    CheckpointError,
    ConfigError,
    DtypeError,
    PluginNotFoundError,
    PluginParameterError,
    ShapeError,
)
from morphlightning.interfaces import Heuristic
from morphlightning.layers import Dilation, Erosion, MorphPool2d
from morphlightning.models import MorphologicalClassifier
from morphlightning.models.parameters import parameter_groups

SHAPE = (1, 8, 8)
Make = Callable[..., L.Trainer]


def digits(**settings: Any) -> Digits:
    return Digits(**{"batch_size": 64, "train_size": 256} | settings)


SPREAD = {"name": "uniform", "low": -1.0, "high": 0.0}
NETS: dict[str, dict[str, Any]] = {
    "convolutional": {},
    "max pooling": {"pool": "max"},
    "average pooling": {"pool": "average"},
    "dense": {"channels": (), "hidden": (30,), "initializer": SPREAD},
    "two dense": {"channels": (), "hidden": (20, 10), "activation": "linear_spline", "initializer": SPREAD},
    "max-plus head": {"channels": (), "head": "max_plus", "head_units": 40},
    "all stages": {"channels": (4,), "hidden": (10,), "head": "max_plus", "activation": "soft_threshold"},
}
FAST = {"name": "adam", "lr": 0.01}


def small(**settings: Any) -> MorphologicalClassifier:
    return MorphologicalClassifier(SHAPE, **{"channels": (4,), "optimizer": FAST} | settings)


@pytest.fixture
def save(make_trainer: Make, tmp_path: Path) -> Callable[..., Path]:
    """Train a step and save."""

    def save(model: MorphologicalClassifier, **settings: Any) -> Path:
        trainer = make_trainer(max_steps=1, **settings)
        trainer.fit(model, digits())
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return save


# --------------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("name", NETS)
def test_every_net_learns(make_trainer: Make, name: str) -> None:
    model = MorphologicalClassifier(SHAPE, optimizer=FAST, **NETS[name])
    data = digits(train_size=None)
    trainer = make_trainer(max_epochs=4)
    trainer.fit(model, data)
    assert {"train/loss_epoch", "train/accuracy"} <= set(trainer.logged_metrics)
    (metrics,) = trainer.test(model, data, verbose=False)
    assert set(metrics) == {"test/loss", "test/accuracy", "test/calibration_error"}
    assert metrics["test/accuracy"] > 0.5


def test_the_default_is_two_morphological_stages_and_a_linear_head() -> None:
    model = MorphologicalClassifier()
    assert sum(isinstance(module, MorphPool2d) for module in model.modules()) == 2
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert isinstance(model.head, nn.Linear)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # processes must agree


def test_the_dense_net_sees_pixels_through_dilations_and_erosions() -> None:
    model = MorphologicalClassifier(channels=(), hidden=(100,))
    kinds = [type(m) for m in model.modules() if isinstance(m, Dilation | Erosion)]
    assert kinds == [Dilation, Erosion]
    assert model.head.in_features == 200


def test_a_max_plus_head_starts_with_filters_of_its_own_for_each_class() -> None:
    model = MorphologicalClassifier(channels=(), head="max_plus", head_units=150)
    weight = model.head.dilation.weight
    assert weight.shape == (10, 150)
    assert torch.equal((weight > -1).sum(1), torch.full((10,), 15))
    assert torch.equal((weight > -1).sum(0), torch.ones(150, dtype=torch.int64))


def test_a_backbone_of_ones_own(save: Callable[..., Path]) -> None:
    def backbone() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), Dilation(12, 7))

    model = small(backbone=backbone())
    assert model.head.in_features == 7
    path = save(model)
    again = MorphologicalClassifier.load_from_checkpoint(path, backbone=backbone())
    x = torch.rand(5, *SHAPE)
    assert torch.equal(again.eval()(x), model.eval()(x))
    with pytest.raises(ConfigError, match=r"backbone of its own \(Sequential\).*load_from_checkpoint\(path, backbone"):
        MorphologicalClassifier.load_from_checkpoint(path)


def test_a_backbone_in_float64() -> None:
    model = MorphologicalClassifier(SHAPE, backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double()).double()
    assert model(torch.rand(2, *SHAPE).double()).dtype == torch.float64


def test_layers_take_the_named_components() -> None:
    model = small(
        derivative={"name": "bouligand", "eps": 0.1},
        heuristic="count_normalized",
        initializer={"name": "uniform", "low": 3.0, "high": 4.0},
        head="max_plus",
    )
    sites = [model.backbone[0].pool1, model.head.dilation]
    assert all(layer.pipeline.policy.rule == Bouligand(eps=0.1) for layer in sites)
    assert all(len(layer.pipeline.updates) == 1 for layer in sites)
    assert model.backbone[0].pool1.weight.min() >= 3
    assert model.head.dilation.weight.max() < 1  # the head keeps its own start


# ------------------------------------------------------------------------------------------------ checkpoints
def test_hyperparameters_are_plain_values(save: Callable[..., Path]) -> None:
    model = small(
        derivative=Bouligand(eps=0.1),
        heuristic=["plain", {"name": "count_normalized"}],
        optimizer={"name": "adam", "lr": 0.01, "betas": (0.8, 0.9)},
        regularizers=["l1", L1(weight=0.1)],
        diagnostics=[{"name": "gradient_density", "every_n_steps": 3}],
    )
    checkpoint = torch.load(save(model), weights_only=True)
    hyperparameters = checkpoint["hyper_parameters"]
    assert yaml.safe_load(yaml.safe_dump(hyperparameters)) == hyperparameters
    assert hyperparameters["in_shape"] == [1, 8, 8]
    assert hyperparameters["channels"] == [4]
    assert hyperparameters["derivative"] == {"name": "bouligand", "eps": 0.1}
    assert hyperparameters["heuristic"] == ["plain", "count_normalized"]
    assert hyperparameters["optimizer"] == {"name": "adam", "lr": 0.01, "betas": [0.8, 0.9]}
    assert hyperparameters["regularizers"] == ["l1", {"name": "l1", "weight": 0.1, "pattern": "*weight"}]
    assert hyperparameters["loss"] == "cross_entropy"
    provided = {(c["kind"], c["name"], c["distribution"]) for c in checkpoint["morphlightning"]["components"]}
    assert ("derivatives", "bouligand", "morphlightning") in provided
    assert ("heuristics", "count_normalized", "morphlightning") in provided
    assert ("diagnostics", "gradient_density", "morphlightning") in provided


@pytest.mark.parametrize("name", ["convolutional", "two dense", "all stages"])
def test_load_from_checkpoint(save: Callable[..., Path], name: str) -> None:
    model = MorphologicalClassifier(SHAPE, derivative=Bouligand(eps=0.1), **NETS[name])
    again = MorphologicalClassifier.load_from_checkpoint(save(model))
    x = torch.rand(5, *SHAPE)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.hparams == model.hparams


def test_hyperparameters_can_be_overridden_on_loading(save: Callable[..., Path]) -> None:
    again = MorphologicalClassifier.load_from_checkpoint(save(small()), optimizer="sgd")
    assert again.hparams.optimizer == "sgd"


@dataclass(frozen=True)
class Doubled(Heuristic):
    """Doubles gradients."""

    stage = "update"

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return 2 * grad


def test_an_object_of_an_unregistered_class_trains_and_is_refused_on_saving(make_trainer: Make, tmp_path: Path) -> None:
    model = small(heuristic=Doubled())
    trainer = make_trainer(max_steps=1)
    trainer.fit(model, digits())
    with pytest.raises(ConfigError, match=r"(?s)cannot be saved.*heuristic: .*Doubled\(\).*to_config"):
        trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert not (tmp_path / "model.ckpt").exists()


def test_a_checkpoint_that_needs_a_plugin_which_is_not_installed(save: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = torch.load(save(small()), weights_only=True)
    checkpoint["morphlightning"]["components"].append(
        {"kind": "heuristics", "name": "gentle", "distribution": "kind-steps", "version": "1.2", "api_version": "1.0"}
    )
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(PluginNotFoundError, match=r"(?s)other.ckpt.*'gentle' from kind-steps 1.2.*kind-steps==1.2"):
        MorphologicalClassifier.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_component_registered_in_the_session(save: Callable[..., Path]) -> None:
    with registry.registered("heuristics", "doubled", Doubled):
        path = save(small(heuristic="doubled"))
        assert MorphologicalClassifier.load_from_checkpoint(path).hparams.heuristic == "doubled"
    with pytest.raises(PluginNotFoundError, match="doubled"):
        MorphologicalClassifier.load_from_checkpoint(path)


def test_a_truncated_checkpoint(save: Callable[..., Path]) -> None:
    path = save(small())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.ckpt cannot be loaded"):
        MorphologicalClassifier.load_from_checkpoint(path)


# ---------------------------------------------------------------------------------------------- loss, metrics
def test_losses() -> None:
    x, y = torch.randn(6, 10), torch.randint(10, (6,))
    assert torch.equal(small().data_loss(x, y), nn.functional.cross_entropy(x, y))
    assert torch.equal(small(loss="multi_margin_loss").data_loss(x, y), nn.functional.multi_margin_loss(x, y))
    with pytest.raises(ConfigError, match="'mse_loss' is unknown here; choose one of cross_entropy, multi_margin_loss"):
        small(loss="mse_loss")


def test_a_loss_of_ones_own_is_given_again_on_loading(save: Callable[..., Path]) -> None:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    path = save(small(loss=loss))
    assert torch.load(path, weights_only=True)["hyper_parameters"]["loss"].endswith("CrossEntropyLoss")
    with pytest.raises(ConfigError, match="pass it again"):
        MorphologicalClassifier.load_from_checkpoint(path)
    assert MorphologicalClassifier.load_from_checkpoint(path, loss=loss).data_loss is loss


def test_metrics_are_those_of_the_whole_set(make_trainer: Make) -> None:
    model, data = small(), digits(batch_size=50)
    (metrics,) = make_trainer().test(model, data, verbose=False)
    images, labels = map(torch.cat, zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    assert metrics["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_predictions_are_probabilities(make_trainer: Make) -> None:
    model, data = small(), digits()
    (first, *_) = make_trainer().predict(model, data)
    images = next(iter(data.test_dataloader()))[0]
    torch.testing.assert_close(first, model.eval()(images).softmax(-1).detach())
    torch.testing.assert_close(first.sum(1), torch.ones(len(first)))
    assert torch.equal(model.predict_step(images, 0), model.predict_step([images], 0))


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed is not supported by the model summary")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_model_summary_runs_the_example_input(make_trainer: Make, precision: str) -> None:
    model = small(head="max_plus", head_units=20)
    trainer = make_trainer(max_steps=1, enable_model_summary=True, precision=precision)
    trainer.fit(model, digits())
    summary = L.pytorch.utilities.model_summary.ModelSummary(model, max_depth=2)
    assert summary.out_sizes[summary.layer_names.index("head")] == [2, 10]


@pytest.mark.parametrize("name", ["all stages", pytest.param("convolutional", marks=pytest.mark.slow)])
def test_torch_compile(name: str) -> None:
    model = MorphologicalClassifier(SHAPE, heuristic="count_normalized", **NETS[name])
    x, y = torch.rand(4, *SHAPE), torch.arange(4)

    def gradients(network: Callable[[Tensor], Tensor]) -> list[Tensor]:
        model.zero_grad()
        model.data_loss(network(x), y).backward()
        return [p.grad.clone() for p in model.parameters()]

    eager = gradients(model)
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)


# -------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 8, 8), (2, 64), (1, 8, 8)])
def test_wrong_image_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"built for in_shape=\(1, 8, 8\); pass in_shape of your data"):
        small()(torch.rand(shape))


def test_integer_images() -> None:
    with pytest.raises(DtypeError, match=r"x is torch.uint8, expected a floating-point tensor; .*255"):
        small()(torch.zeros(2, *SHAPE, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be >= 2, got 1"),
        ({"head": "softmax"}, "head must be 'linear' or 'max_plus', got 'softmax'"),
        ({"pool": "median"}, "pool must be one of morphological, max, average, got 'median'"),
        ({"channels": (4, 0)}, r"channels=\(4, 0\), expected positive integers"),
        ({"hidden": (-1,)}, r"hidden=\(-1,\), expected positive integers"),
        ({"head_units": 0}, "head_units=0, expected positive integers"),
        ({"in_shape": (8, 8)}, r"in_shape=\(8, 8\), expected \(channels, height, width\)"),
        ({"regularizers": "l1"}, r"regularizers='l1': expected a list of components, such as \['l1'\]"),
        ({"diagnostics": {"name": "gradient_density"}}, "diagnostics=.*: expected a list of components"),
        ({"backbone": nn.Linear(3, 3)}, r"backbone Linear does not run on a batch of shape \(1, 1, 8, 8\)"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MorphologicalClassifier(**{"in_shape": SHAPE} | settings)


def test_bad_components() -> None:
    with pytest.raises(PluginNotFoundError, match=r"'boligand'.*bouligand"):
        small(derivative="boligand")
    with pytest.raises(PluginParameterError, match="'epsilon'"):
        small(derivative={"name": "bouligand", "epsilon": 1})
    with pytest.raises(ConfigError, match="lr must be > 0"):
        small(optimizer={"name": "adam", "lr": -1})


# -------------------------------------------------------------------------------------------------- optimizers
def test_parameter_roles() -> None:
    model = MorphologicalClassifier(
        SHAPE, backbone=nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), MorphPool2d(4, 2)), head="max_plus"
    )
    model.backbone.append(registry.build("activations", "soft_threshold", channels=4))
    model.extra = nn.Parameter(torch.zeros(2))
    model.backbone[0].bias.requires_grad_(False)
    groups = {group.role: group for group in parameter_groups(model)}
    assert groups["morph"].names == ["backbone.2.weight", "head.dilation.weight"]
    assert groups["linear"].names == ["backbone.0.weight", "head.filters.weight"]
    assert groups["norm"].names == ["backbone.1.weight", "backbone.1.bias"]
    assert groups["bias"].names == ["head.filters.bias"]
    assert groups["activation"].names == ["backbone.3.threshold"]
    assert groups["other"].names == ["extra"]
    assert {role for role, group in groups.items() if group.decay} == {"linear", "other"}


def test_shared_parameters_are_listed_once() -> None:
    layer = nn.Linear(3, 3)
    (group, bias) = parameter_groups(nn.Sequential(layer, layer))
    assert (group.names, bias.names) == (["0.weight"], ["0.bias"])


def test_adamw_never_decays_max_plus_weights(make_trainer: Make) -> None:
    def trained(decay: float) -> MorphologicalClassifier:
        torch.manual_seed(0)
        # a loss without gradient: only decay moves anything
        model = small(
            optimizer={"name": "adamw", "lr": 0.1, "weight_decay": decay},
            head="max_plus",
            loss=lambda x, y: 0 * x.sum(),
        )
        make_trainer(max_steps=3).fit(model, digits())
        return model

    still, decayed = trained(0.0), dict(trained(0.5).named_parameters())
    for name, parameter in still.named_parameters():
        moved = not torch.equal(decayed[name], parameter)
        assert moved == (name in ("backbone.0.conv1.weight", "head.filters.weight")), name


class Rates(Callback):
    """Keeps the rates of all steps."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.kept.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_steps": 8, "max_epochs": -1}])
@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ("constant", 0.02, 0.1),  # rises over four steps
        ("cosine", 0.02, 0.05 * (1 + math.cos(0.75 * math.pi))),
        ("one_cycle", 0.1 / 25, 0.1 / 25 / 1e4),
        ("step", 0.1, 0.1 * 0.1**2),
    ],
)
def test_schedules_span_the_run(
    make_trainer: Make, schedule: str, first: float, last: float, length: dict[str, int]
) -> None:
    warmup = 0.5 if schedule in ("constant", "cosine") else 0.0
    model = small(optimizer={"name": "sgd", "lr": 0.1, "schedule": schedule, "warmup": warmup})
    rates = Rates()
    make_trainer(**length, callbacks=[rates]).fit(model, digits())  # four steps an epoch
    assert len(rates.kept) == 8
    assert (rates.kept[0], rates.kept[-1]) == pytest.approx((first, last))


def test_a_schedule_without_an_end(make_trainer: Make) -> None:
    model = small(optimizer={"name": "adam", "schedule": "cosine"})
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(model, digits())


# ------------------------------------------------------------------------------- regularizers and diagnostics
def test_l1_acts_and_is_logged(make_trainer: Make) -> None:
    def weights(amount: float) -> float:
        torch.manual_seed(0)
        model = small(
            regularizers=[{"name": "l1", "weight": amount}, {"name": "l1", "weight": amount, "pattern": "head*"}]
        )
        trainer = make_trainer(max_epochs=2)
        trainer.fit(model, digits())
        assert (trainer.logged_metrics["regularizer/l1"] > 0) == (amount > 0)
        assert trainer.logged_metrics["regularizer/l1_2"] <= trainer.logged_metrics["regularizer/l1"]
        return model.head.weight.abs().sum().item()

    assert weights(0.05) < 0.8 * weights(0.0)


def test_a_regularizer_that_fits_nothing_is_refused_before_training(make_trainer: Make) -> None:
    with pytest.raises(ConfigError, match="no parameter matches"):
        make_trainer().fit(small(regularizers=[{"name": "l1", "pattern": "nothing"}]), digits())


def test_diagnostics_log_and_change_nothing(make_trainer: Make) -> None:
    def train(diagnostics: list[Any]) -> tuple[dict[str, Tensor], L.Trainer]:
        torch.manual_seed(0)
        model = small(diagnostics=diagnostics, heuristic="count_normalized")
        trainer = make_trainer(max_epochs=2, log_every_n_steps=1)
        trainer.fit(model, digits())
        return model.state_dict(), trainer

    plain, _ = train([])
    watched, trainer = train([{"name": "gradient_density", "every_n_steps": 1}])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    logged = {name for name in trainer.logged_metrics if name.startswith("diagnostics/")}
    assert logged == {
        "diagnostics/gradient_density/backbone.0.pool1",
        "diagnostics/gradient_density/backbone.0.pool1/dead",
        "diagnostics/gradient_density/backbone.0.pool1/dead_rows",
        "diagnostics/gradient_density/backbone.0.pool1/touched",
    }


def test_the_users_own_guards_win(make_trainer: Make) -> None:
    from morphlightning.callbacks import FiniteGuard

    mine = FiniteGuard(check_batch=False)
    trainer = make_trainer(max_steps=1, callbacks=[mine])
    trainer.fit(small(), digits())
    guards = [type(callback).__name__ for callback in trainer.callbacks]
    assert [callback for callback in trainer.callbacks if isinstance(callback, FiniteGuard)] == [mine]
    assert {"RankAgreement", "GracefulSigterm", "RandomState"} <= set(guards)


# --------------------------------------------------------------------------------------------------- heuristics
class Gradients(Callback):
    """Keeps the gradients that the optimizer receives, after the heuristics and clipping."""

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.kept = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def test_count_normalized_with_accumulation_and_clipping(make_trainer: Make) -> None:
    """Two micro-batches of 32 give the update of one batch of 64, and clipping acts on the normalized gradient."""

    def trained(batch_size: int, accumulate: int, clip: float | None) -> MorphologicalClassifier:
        torch.manual_seed(0)
        model = small(heuristic="count_normalized", optimizer={"name": "sgd", "lr": 0.05})
        settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "precision": "64-true"}
        make_trainer(max_steps=5, max_epochs=-1, **settings).fit(model, digits(batch_size=batch_size))
        return model

    for clip in (None, 0.1):
        one, two = trained(64, 1, clip), trained(32, 2, clip)
        for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)
    assert not torch.equal(trained(64, 1, None).backbone[0].pool1.weight, one.backbone[0].pool1.weight)


def test_morph_sgd_with_accumulation(make_trainer: Make) -> None:
    """Two micro-batches of 32 give the steps of one batch of 64: counts, gaps and samples add up."""
    optimizer = {"name": "morph_sgd", "morph_momentum": 0.5, "radius_clip": 0.3, "sup_norm": True}

    def trained(batch_size: int, accumulate: int) -> MorphologicalClassifier:
        torch.manual_seed(0)
        model, settings = small(optimizer=optimizer), {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        make_trainer(max_steps=5, max_epochs=-1, **settings).fit(model, digits(batch_size=batch_size))
        return model

    one, two = trained(64, 1), trained(32, 2)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


def test_clipping_sees_what_the_heuristic_made(make_trainer: Make) -> None:
    model, gradients = small(heuristic="count_normalized"), Gradients()
    make_trainer(max_steps=2, gradient_clip_val=1e-3, callbacks=[gradients]).fit(model, digits())
    total = torch.stack([g.norm() for g in gradients.kept.values()]).norm().item()
    assert total == pytest.approx(1e-3, rel=1e-3)
