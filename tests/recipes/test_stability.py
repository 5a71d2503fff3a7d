"""The comparison measures what it says."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from morphlightning.guarantees.stability import equivariances
from morphlightning.lipschitz import certify

FOLDER = Path(__file__).parents[2] / "recipes" / "stability"
IMAGES = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def write_mnist(folder: Path, count: int) -> None:
    """Files in MNIST's format, of noise with a bright row that tells the class."""
    draw = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = torch.randint(0, 60, (count, 28, 28), generator=draw, dtype=torch.uint8)
        images[torch.arange(count), 2 * labels.long() + 4] = 250
        head = b"".join(n.to_bytes(4, "big") for n in (0x0803, count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (0x0801, count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.numpy().tobytes())


def test_the_networks_are_what_they_are_called(recipe) -> None:
    networks = recipe("shared.networks").NETWORKS
    for name, build in networks.items():
        network = build().eval()
        assert network(IMAGES).shape == (12, 10)
        claimed = equivariances(network)
        assert (claimed is not None and "brightness" in claimed.rounded) == (name == "morphological")
    assert certify(networks["morphological"]().eval(), "linf").constant == 1


def test_networks_learn(recipe, tmp_path) -> None:
    write_mnist(tmp_path, 240)
    networks = recipe("shared.networks")
    for build in networks.NETWORKS.values():
        torch.manual_seed(0)
        network = networks.train(build(), str(tmp_path), 20, None, enable_progress_bar=False)
        assert not network.training
        assert networks.accuracy(network, networks.images(str(tmp_path), 100)) > 0.6


def test_predictions_kept_are_counted(recipe) -> None:
    changes, study = recipe("changes"), recipe("study")
    test = (IMAGES, torch.zeros(12, dtype=torch.long))
    one = study.Study(study.PRESETS["tiny"], (0,), {}, test)
    constant = changes.predictions_kept(lambda x: torch.eye(10)[torch.zeros(len(x), dtype=torch.long)], one)
    assert set(constant.values()) == {100}
    mean = nn.Sequential(nn.AvgPool2d(28), nn.Flatten())
    dark = changes.predictions_kept(lambda x: torch.cat([mean(x), torch.full((len(x), 1), 0.6)], 1), one)
    assert dark["brightness +0.3"] == 0
    assert dark["brightness -0.5"] == dark["gain 0.5"] == 100


@pytest.mark.slow
def test_a_run_writes_tables_runs_and_figures(tmp_path) -> None:
    write_mnist(tmp_path, 200)
    command = [sys.executable, FOLDER, "--preset", "tiny", "--data-dir", tmp_path, "--results", tmp_path / "results"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    rows = list(csv.DictReader((folder / "deformations.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2
    assert all(float(row["D"]) >= 0 and float(row["R"]) > 0 for row in rows)
    defects = list(csv.DictReader((folder / "changes.csv").read_text().splitlines()))
    exact = [row for row in defects if (row["network"], row["layer"], row["change"]) == ("morphological", "0", "shift")]
    assert [float(row["max"]) for row in exact] == [0]
    assert "exact" in (folder / "findings.md").read_text()
    assert {path.name for path in folder.glob("*.png")} == {"deformations_curves.png", "deformations_digits.png"}


@pytest.mark.slow
def test_a_missing_data_set_is_named(tmp_path) -> None:
    command = [sys.executable, FOLDER, "--preset", "tiny", "--data-dir", tmp_path / "none"]
    done = subprocess.run([*command, "--results", tmp_path / "results"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "MNIST" in done.stderr
    assert "Traceback" not in done.stderr
