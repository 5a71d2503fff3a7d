"""PAC-Bayes bounds of a training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from morphlightning_plugins.diagnostics import PACBayesCertificate
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from morphlightning.data import Digits
from morphlightning.errors import ConfigError, DataError, NotCertifiable
from morphlightning.guarantees.information import PACBayes, TapChain, evidence
from morphlightning.models import CertifiedClassifier, MorphologicalClassifier
from morphlightning.testing import check_component

LOADERS = ("train_dataloaders", "val_dataloaders")
SCRIPT = Path(__file__).parents[1] / "distributed" / "fit_pac_bayes.py"


def model(**settings: Any) -> CertifiedClassifier:
    torch.manual_seed(0)
    start = {"name": "normal", "std": 0.02}
    return CertifiedClassifier((1, 8, 8), 10, hidden=(16,), eps=0.05, max_shift=0, initializer=start, **settings)


def fitted(folder: Path, callback: PACBayesCertificate, data: Any = None, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        callbacks=[callback],
        **{"max_epochs": 2} | settings,
    )
    trainer.fit(model(), **({"datamodule": Digits(batch_size=100)} if data is None else dict.fromkeys(LOADERS, data)))
    return trainer


def test_it_bounds_by_all_training_samples_when_training_ends(tmp_path: Path) -> None:
    callback = PACBayesCertificate()
    trainer = fitted(tmp_path, callback, limit_train_batches=5)
    logged = {
        name.removeprefix("diagnostics/pac_bayes_certificate/"): value.item()
        for name, value in trainer.callback_metrics.items()
        if name.startswith("diagnostics/")
    }
    data = trainer.datamodule.training_sets()[0]
    chain = TapChain(trainer.lightning_module.hardened())
    batch = [torch.stack(parts) for parts in zip(*(data[k] for k in range(len(data))), strict=True)]
    seen = evidence(chain, [batch])
    expected = PACBayes().bound(chain, seen)
    assert logged["samples"] == len(data)
    assert logged["gibbs"] == pytest.approx(expected.value, rel=1e-6)
    assert logged["bits"] == pytest.approx(expected.bits, rel=1e-6)
    assert logged["train_error"] == pytest.approx(seen.errors / len(data))
    assert logged["train_error"] <= logged["margin_error"] < logged["gibbs"] <= logged["deterministic"] <= 1
    assert logged["taps"] == 2 * (64 * 16 + 16 * 10)
    assert 0 < logged["winning_taps"] < logged["taps"]
    assert callback.bounds["gibbs"].value == expected.value
    assert len(callback.history) == 1
    assert callback.state_dict()["history"] == callback.history


def test_every_epoch_and_a_subset_that_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = PACBayesCertificate(every_n_epochs=1, subset=300, alternatives=4)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fitted(tmp_path, callback, max_epochs=3, limit_train_batches=1)
    assert [entry["epoch"] for entry in callback.history] == [0, 1, 2]
    assert {entry["samples"] for entry in callback.history} == {300}
    assert "from the first 300 training samples" in caplog.text


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ((torch.rand(1, 8, 8), torch.tensor(1)) for _ in range(20))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be >= 1 or None"):
        PACBayesCertificate(every_n_epochs=0)
    with pytest.raises(ConfigError, match="delta in"):
        PACBayesCertificate(delta=0.0)
    with pytest.raises(DataError, match="have no length"):
        fitted(tmp_path, PACBayesCertificate(), DataLoader(Endless(), batch_size=10), max_steps=2)
    few = DataLoader(TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 10), batch_size=10)
    with pytest.raises(DataError, match="subset=30, but there are 20"):
        fitted(tmp_path, PACBayesCertificate(subset=30), few, max_epochs=1)


def test_a_network_without_a_bound_is_refused_before_it_trains(tmp_path: Path) -> None:
    network = MorphologicalClassifier((1, 8, 8), 10, channels=(), hidden=(4,))
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        max_epochs=1,
        callbacks=[PACBayesCertificate()],
    )
    with pytest.raises(NotCertifiable, match=r"layer '\S+' \(Linear\)"):
        trainer.fit(network, Digits(batch_size=100))
    assert trainer.global_step == 0


def test_it_conforms() -> None:
    report = check_component("diagnostics", PACBayesCertificate())
    assert "logs_under_its_own_name" in report.passed


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    for devices in ("1", "2"):
        command = [sys.executable, "-W", "ignore", str(SCRIPT), str(tmp_path), devices]
        environment = inherited | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-6)
