from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from morphlightning_plugins.diagnostics import LipschitzAudit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.data import Digits
from morphlightning.errors import BrokenCertificateError, ConfigError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.layers import MeanShift, SignedDilation, SignedErosion
from morphlightning.models import MorphologicalClassifier


class Kept(L.LightningModule):
    """Trains a network and keeps what is logged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.logged: dict[str, list[float]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.setdefault(name.removeprefix("diagnostics/lipschitz_audit/"), []).append(float(value))


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(64, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    return DataLoader(TensorDataset(images, labels), 16)


def fit(folder: Path, network: nn.Module, audit: LipschitzAudit | None, steps: int = 6) -> Kept:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Kept(network)
        L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            default_root_dir=folder,
            logger=False,
            callbacks=[] if audit is None else [audit],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(module, batches())
    return module


def signed() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), SignedDilation(64, 8), MeanShift(8), SignedErosion(8, 10))


class Liar(nn.Linear):
    """A layer that understates its constant."""

    def lipschitz_spec(self) -> LipschitzSpec:
        return LipschitzSpec(0.01, "linf", "linf", why="a claim")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_signed_networks_are_certified_at_one_and_found_to_be_no_steeper(tmp_path: Path) -> None:
    module = fit(tmp_path, signed(), LipschitzAudit(every_n_steps=3))
    assert module.logged["certified"] == [1.0, 1.0]
    assert all(0.9 < found <= 1 + 1e-9 for found in module.logged["found"])


def test_l2_networks_are_bounded_above_and_below(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10)
    )
    module = fit(tmp_path, network, LipschitzAudit(every_n_steps=2, norm="l2"))
    assert len(module.logged["found"]) == 3
    for found, certified in zip(module.logged["found"], module.logged["certified"], strict=True):
        assert 0.1 * certified < found < certified


def test_a_wrong_constant_fails_the_fit_and_the_layers_are_named(tmp_path: Path) -> None:
    network = signed().append(Liar(10, 10))
    with pytest.raises(
        BrokenCertificateError, match=r"(?s)at step 2 .*above the certified 0.01.*\n  4  +0.01  a claim"
    ):
        fit(tmp_path, network, LipschitzAudit(every_n_steps=2))


def test_what_cannot_be_certified_is_named_once(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10))
    with pytest.warns(UserWarning, match=r"turned off .* layer .2. \(LayerNorm\).*measure inputs in l2") as warned:
        module = fit(tmp_path, network, LipschitzAudit(every_n_steps=1))
    assert len([w for w in warned if "lipschitz_audit" in str(w.message)]) == 1
    assert not module.logged


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), SignedErosion(8, 10)
            )

    plain, audited = fit(tmp_path, network(), None), fit(tmp_path, network(), LipschitzAudit(every_n_steps=1))
    assert audited.logged["found"]
    for name, value in plain.state_dict().items():
        assert torch.equal(audited.state_dict()[name], value), name


def test_it_watches_the_classifier(tmp_path: Path) -> None:
    model = MorphologicalClassifier((1, 8, 8), channels=(), hidden=(8,))
    trainer = L.Trainer(
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[LipschitzAudit(1)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, Digits(batch_size=16, train_size=32))
    assert trainer.logged_metrics["diagnostics/lipschitz_audit/certified"] > 0


def test_bad_settings() -> None:
    for settings in ({"norm": "l1"}, {"samples": 0}, {"steps": -1}, {"every_n_steps": 0}):
        with pytest.raises(ConfigError, match="lipschitz_audit"):
            LipschitzAudit(**settings)  # type: ignore[arg-type]
