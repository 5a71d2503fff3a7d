from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.callbacks import RandomState
from morphlightning.callbacks.random_state import KEY, capture, restore
from morphlightning.checkpoint_io import SafeCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed.*")


class Resumable(DataLoader[Any]):
    done = skip = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["done"] % len(self)

    def __iter__(self) -> Any:
        skip, self.skip, self.done = self.skip, 0, 0
        for batch in super().__iter__():
            self.done += 1
            if self.done > skip:
                yield batch


class Net(LightningModule):
    """Draws from all three generators."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.body(batch[0]).square().mean() * (random.random() + np.random.rand() + np.random.randn())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", self.body(batch[0]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(
    folder: Path, seed: int, resume: Path | None = None, callback: bool = True, **options: Any
) -> dict[str, Tensor]:
    net = Net()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, **options), *([RandomState()] if callback else [])],
    )
    data = TensorDataset(torch.linspace(0, 1, 36).reshape(12, 3))
    loader = Resumable(data, 3, generator=torch.Generator())
    trainer.fit(net, loader, DataLoader(data, 4, generator=torch.Generator()), ckpt_path=resume)
    return net.state_dict()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "epoch=0-step=4.ckpt"),
        ({"save_on_train_epoch_end": True}, "epoch=1-step=8.ckpt"),
        ({"every_n_train_steps": 3}, "epoch=1-step=6.ckpt"),
    ],
)
def test_resume_is_bit_exact(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    straight = fit(tmp_path, 1, **options)
    assert equal(fit(tmp_path / "b", 2, tmp_path / name, **options), straight)
    assert not equal(fit(tmp_path / "c", 2, tmp_path / name, callback=False, **options), straight)


def test_other_number_of_processes_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, 1)
    path = tmp_path / "epoch=0-step=4.ckpt"
    content = SafeCheckpointIO().load_checkpoint(path)
    assert len(content[KEY]) == 1
    content[KEY] *= 2
    SafeCheckpointIO().save_checkpoint(content, path)
    with caplog.at_level("INFO"):
        fit(tmp_path / "b", 2, path)
    assert "random states of 2 processes, this run has 1" in caplog.text


def test_capture_and_restore() -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), np.random.randn(), random.gauss(0, 1), random.random()

    draw()
    state = capture(torch.device("cpu"))
    first = draw()
    assert draw() != first
    restore(state, torch.device("cpu"))
    assert draw() == first
