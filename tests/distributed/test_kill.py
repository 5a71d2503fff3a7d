"""A run that is killed at any moment resumes from its last checkpoint to the end of a run that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, time
from pathlib import Path
import torch
import morphlightning
import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from morphlightning import MorphologicalAutoencoder, SafeCheckpointIO
from morphlightning.data import Digits

torch.set_num_threads(1)
folder, resume = Path(sys.argv[1]), sys.argv[2:]
torch.manual_seed(0)
optimizer = {"name": "adam", "lr": 0.01, "schedule": "cosine"}
model = MorphologicalAutoencoder((1, 8, 8), channels=(4,), optimizer=optimizer, heuristic="count_normalized")
keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
trainer = L.Trainer(accelerator="cpu", max_epochs=6, default_root_dir=folder, logger=False, enable_progress_bar=False,
                    enable_model_summary=False, plugins=[SafeCheckpointIO()], callbacks=[keep])
data = Digits(batch_size=32, train_size=320, task="denoising")
trainer.fit(model, data, ckpt_path=resume[0] if resume else None)
torch.save(model.state_dict(), folder / "end.pt")
"""


def start(folder: Path, *resume: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), *map(str, resume)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def finish(folder: Path, *resume: Path) -> dict[str, torch.Tensor]:
    process = start(folder, *resume)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-3000:]
    end: dict[str, torch.Tensor] = torch.load(folder / "end.pt", weights_only=True)
    return end


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_runs_resume_bit_for_bit(tmp_path: Path, seed: int) -> None:
    straight = finish(tmp_path / "straight")
    process = start(tmp_path / "killed")
    while process.poll() is None and not checkpoints(tmp_path / "killed"):
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.4))  # anywhere, in the middle of a write too
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    last = checkpoints(tmp_path / "killed")[-1]
    resumed = finish(tmp_path / "resumed", last)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
