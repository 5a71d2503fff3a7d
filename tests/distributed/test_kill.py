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
from morphlightning import LiftedModule, MorphologicalAutoencoder, SafeCheckpointIO
from morphlightning.data import Digits
from torch import nn

torch.set_num_threads(1)
folder, kind, resume = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
torch.manual_seed(0)
if kind == "adam":
    optimizer = {"name": "adam", "lr": 0.01, "schedule": "cosine"}
    model = MorphologicalAutoencoder((1, 8, 8), channels=(4,), optimizer=optimizer, heuristic="count_normalized")
    settings, every = {}, 3
else:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (1, 8, 8)))
    name, mode, policy = kind.split("-")
    optimizer = {"name": name, "checkpoints": policy} | ({"mode": mode} if mode else {})
    model, settings, every = LiftedModule(net, optimizer=optimizer), {"fixed_noise": True, "passes": 4}, 1
keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
trainer = L.Trainer(accelerator="cpu", max_epochs=6, default_root_dir=folder, logger=False, enable_progress_bar=False,
                    enable_model_summary=False, plugins=[SafeCheckpointIO()], callbacks=[keep])
data = Digits(batch_size=32, train_size=320, task="denoising", **settings)
trainer.fit(model, data, ckpt_path=resume[0] if resume else None)
torch.save(model.state_dict(), folder / "end.pt")
"""


def start(folder: Path, kind: str, *resume: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), kind, *map(str, resume)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def finish(folder: Path, kind: str, *resume: Path) -> dict[str, torch.Tensor]:
    process = start(folder, kind, *resume)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-3000:]
    end: dict[str, torch.Tensor] = torch.load(folder / "end.pt", weights_only=True)
    return end


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("adam", 0),
        ("adam", 1),
        ("adam", 2),
        ("badmm--gather", 3),
        ("badmm--shards", 4),
        ("lifted-incremental-gather", 5),
    ],
)
def test_killed_runs_resume_bit_for_bit(tmp_path: Path, kind: str, seed: int) -> None:
    straight = finish(tmp_path / "straight", kind)
    process = start(tmp_path / "killed", kind)
    while process.poll() is None and not checkpoints(tmp_path / "killed"):
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.4))  # anywhere, in the middle of a write too
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    last = checkpoints(tmp_path / "killed")[-1]
    resumed = finish(tmp_path / "resumed", kind, last)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
