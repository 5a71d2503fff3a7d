"""The recipe trains, certifies, attacks, exports, resumes and says what it found."""

import csv
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from morphlightning.errors import DataError

FOLDER = Path(__file__).parents[2] / "recipes" / "certified_mnist"


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Images of two kinds in the files of MNIST: bright halves, with noise."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, size in (("train", 1024), ("t10k", 200)):
        labels = torch.arange(size) % 2
        images = torch.randint(0, 90, (size, 28, 28), generator=generator)
        images[labels == 0, :14] += 150
        images[labels == 1, 14:] += 150
        pixels, classes = (bytes(t.flatten().to(torch.uint8).tolist()) for t in (images, labels))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, size, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, size) + classes)
    return tmp_path / "data"


def start(tmp_path: Path, data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER), "--data-dir", str(data_dir), "--preset", "tiny", "--threads", "1"]
    command += ["--results", str(tmp_path / "results"), *options]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)


@pytest.mark.slow
def test_a_run_certifies_attacks_and_draws(tmp_path, data_dir) -> None:
    done = start(tmp_path, data_dir, "--epochs", "8")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "results").iterdir()
    rows = list(csv.DictReader((folder / "certified_mnist.csv").read_text().splitlines()))
    assert [row["eps"] for row in rows] == ["0.1", "0.2", "0.3", "0.4"]
    third = rows[2]
    lipschitz, interval, exact, int16 = (
        float(third[f"{method} share"]) for method in ("lipschitz", "interval", "exact", "int16")
    )
    assert float(third["accuracy"]) > 0.9
    assert lipschitz <= interval <= exact <= float(third["upper"]) <= float(third["accuracy"])
    assert min(interval, int16) > 0.1
    assert float(third["gap"]) >= 0
    assert (folder / "certified_mnist_radii.png").stat().st_size > 10_000
    assert (folder / "seed0" / "last.ckpt").exists()
    assert list((folder / "seed0").glob("events.*"))
    assert "16-bit integers" in (folder / "findings.md").read_text()


@pytest.mark.slow
def test_a_run_that_is_resumed_goes_on_from_its_checkpoint(tmp_path, data_dir, recipe) -> None:
    training = recipe("training")
    setting = replace(training.PRESETS["tiny"], data_dir=str(data_dir), epochs=4)
    whole, _ = training.train(setting, 0, tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LearningCurves", _Kill)
        with pytest.raises(_Killed):
            training.train(setting, 0, broken)
    resumed, _ = training.train(setting, 0, broken)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


class _Killed(Exception):
    pass


class _Kill(L.Callback):
    """Ends a training at the start of its third epoch."""

    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.current_epoch == 2:
            raise _Killed


def test_settings_are_kept_for_resumption(tmp_path, recipe) -> None:
    training = recipe("training")
    for setting in training.PRESETS.values():
        training.write(setting, tmp_path)
        assert training.read(tmp_path) == setting
    with pytest.raises(DataError, match=r"there is no setting\.json"):
        training.read(tmp_path / "nothing")


def test_the_gpu_preset_is_ready_to_start(recipe) -> None:
    training = recipe("training")
    setting = training.PRESETS["gpu"]
    model = training.build(replace(setting, hidden=(8,) * len(setting.hidden)), 0)
    assert {layer.precision for layer in model.network if hasattr(layer, "precision")} == {"bfloat16"}
    assert len(setting.seeds) >= 5


def test_worst_cases_are_images_that_changed_class(recipe) -> None:
    evaluation = recipe("evaluation")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    images = torch.tensor([[0.5, 0.4], [0.9, 0.1], [0.2, 0.6], [0.3, 0.7]]).view(4, 1, 1, 2)
    labels = torch.tensor([0, 0, 0, 1])
    pgd = evaluation.PGD(0.2, steps=5, restarts=1, beta=None)
    cases = evaluation._worst(network, images, labels, pgd(network, images, labels))
    assert [(case.label, case.taken_for) for case in cases] == [(0, 1)]
    assert (cases[0].image - images[0]).abs().max() == 0
