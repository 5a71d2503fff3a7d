"""Warnings about starts from which max-plus weights will not learn, and silence where they will."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning import registry
from morphlightning.callbacks import StartGuard
from morphlightning.errors import TrainingWarning
from morphlightning.interfaces import Loop
from morphlightning.layers import Dilation, Erosion, Opening2d, SoftDilation, starts
from morphlightning.models import MorphologicalAutoencoder, MorphologicalClassifier
from morphlightning.models.parameters import parameter_groups


class Foreign(L.LightningModule):
    """Somebody's own module."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD, **layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(Dilation(20, 10, **layer), Erosion(10, 4), nn.Linear(4, 1))
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=0.01)


def fit(
    model: L.LightningModule, folder: Path, *, max_epochs: int = 2, save: Path | None = None, **settings: Any
) -> list[str]:
    """Train; the warnings of our kind."""
    data = TensorDataset(torch.rand(64, 20), torch.rand(64, 1))
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StartGuard()],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, DataLoader(data, 32), **settings)
    if save is not None:
        trainer.save_checkpoint(save)
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    return [str(warning.message) for warning in caught if issubclass(warning.category, TrainingWarning)]


def test_good_starts_are_silent(tmp_path: Path) -> None:
    for start in ("upper", "identity", {"name": "uniform", "low": -0.5, "high": 0.0}):
        assert fit(Foreign(initializer=start), tmp_path) == []


def test_weight_decay_warns_once(tmp_path: Path) -> None:
    (message,) = fit(Foreign(torch.optim.AdamW), tmp_path)
    assert "weight decay acts on the max-plus weights of 'network.0', 'network.1': it pulls them to 0" in message
    assert "parameter group with weight_decay=0" in message


def test_equal_units_warn(tmp_path: Path) -> None:
    (message,) = fit(Foreign(initializer="zeros"), tmp_path)
    assert "all units of 'network.0' start with the same weights" in message
    assert "initializer='upper'" in message


def test_a_wide_spread_warns(tmp_path: Path) -> None:
    (message,) = fit(Foreign(initializer={"name": "uniform", "low": -4.0, "high": 4.0}), tmp_path)
    assert "the weights of 'network.0' spread far wider than the inputs vary" in message


def test_a_resumed_run_is_not_judged_by_its_start(tmp_path: Path) -> None:
    assert len(fit(Foreign(torch.optim.AdamW, initializer="zeros"), tmp_path, save=tmp_path / "end.ckpt")) == 2
    (message,) = fit(
        Foreign(torch.optim.AdamW, initializer="zeros"), tmp_path, max_epochs=3, ckpt_path=tmp_path / "end.ckpt"
    )
    assert "weight decay" in message


def test_who_can_win() -> None:
    x = torch.rand(50, 20)
    normal = Dilation(20, 10)
    torch.nn.init.normal_(normal.weight, std=1.0)
    assert starts.few_can_win(normal, x)
    assert starts.few_can_win(normal, x.view(5, 10, 20))
    assert not starts.few_can_win(normal, 10 * x)
    assert not starts.few_can_win(normal, torch.zeros(50, 20))  # an input that says nothing, such as a dry run's
    soft = SoftDilation(20, 10, beta=0.1)
    soft.weight.data.copy_(normal.weight)
    assert not starts.few_can_win(soft, x)  # at this temperature all have a share
    soft.set_beta(1e3)
    assert starts.few_can_win(soft, x)
    for units in (2, 3, 10):
        assert not starts.few_can_win(Dilation(20, units, initializer="sparse"), x)
        assert not starts.few_can_win(Dilation(20, units, initializer={"name": "sparse", "missing": True}), x)


def test_only_dense_layers_that_are_trained_are_looked_at() -> None:
    model = nn.ModuleList([Dilation(4, 3), Opening2d(3), Dilation(4, 3).requires_grad_(False)])
    assert [name for name, _ in starts.dense_layers(model)] == ["0"]
    assert starts.all_units_equal(Dilation(4, 3, initializer="flat"))
    assert not starts.all_units_equal(Dilation(4, 1, initializer="flat"))
    assert not starts.all_units_equal(Dilation(4, 3, initializer="flat", mask=torch.eye(3, 4)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", {"name": "adamw", "weight_decay": 0.1}, "signum"])
def test_our_optimizers_do_not_decay_max_plus_weights(optimizer: Any) -> None:
    model = MorphologicalClassifier((1, 8, 8), channels=(4,), hidden=(6,), head="max_plus")
    component, groups = registry.build("optimizers", optimizer), parameter_groups(model)
    if isinstance(component, Loop):
        component.bind(model, groups)
    built = component.optimizer() if isinstance(component, Loop) else component.build(groups)
    assert starts.decayed(model, built) == []
    assert starts.decayed(model, torch.optim.AdamW(model.parameters())) == [
        "backbone.0.pool1",
        "backbone.2.morph1.dilation",
        "backbone.2.morph1.erosion",
        "head.dilation",
    ]


def test_layers_on_raw_data_start_non_negative_and_heads_start_sparse() -> None:
    for model in (
        MorphologicalClassifier((1, 8, 8), channels=(), hidden=(6,), head="max_plus"),
        MorphologicalAutoencoder((1, 8, 8), channels=()),
    ):
        first = next(module for module in model.modules() if isinstance(module, Dilation))
        assert (first.weight >= 0).all()
        assert first.weight.std() > 0
        if isinstance(model, MorphologicalClassifier):
            assert type(model.head.dilation.initializer).__name__ == "Sparse"
