from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from morphlightning.checkpoint_io import SafeCheckpointIO


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """A quiet Trainer on the CPU that writes below tmp_path."""

    def make(**settings: Any) -> L.Trainer:
        quiet = {
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
        }
        plugins = [SafeCheckpointIO()]
        return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, plugins=plugins, **quiet | settings)

    return make
