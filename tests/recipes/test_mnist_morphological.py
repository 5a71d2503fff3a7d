"""The recipe trains both ways and writes what came out; its network is made of maxima and additions of constants."""

import csv
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "recipes" / "mnist_morphological"
NAMES = ("network", "training", "ways", "study", "report")


@pytest.fixture
def network(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import network

    yield network
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    """MNIST in its format, of noise."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", 480), ("t10k", 20)):
        images = torch.randint(0, 256, (size, 28, 28), dtype=torch.uint8).numpy().tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, size, 28, 28) + images)
        labels = (torch.arange(size) % 10).byte().numpy().tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, size) + labels)
    return tmp_path / "data"


def recipe(*arguments):
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("--seeds", 0, 1), ("--seeds", 0, "--ablation")])
def test_short_run_writes_tables_and_figure(data, tmp_path, arguments):
    done = recipe("--data-dir", data, "--epochs", 1, "--results", tmp_path / "results", *arguments)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    runs = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    epochs = list(csv.DictReader((folder / "epochs.csv").read_text().splitlines()))
    assert len(runs) == len(epochs) == (11 if "--ablation" in arguments else 2 + 4 + 2 + 1)
    assert all(0 <= float(run["test_accuracy"]) <= 1 for run in runs)
    assert (folder / "accuracy.png").exists() == ("--ablation" not in arguments)
    assert ("pooled standard deviation" in done.stdout) == ("--ablation" not in arguments)


def test_network_is_piecewise_affine_with_slopes_of_size_one(network):
    """Each logit is plus or minus one pixel plus a constant, so it cannot multiply anything."""
    torch.manual_seed(0)
    net = network.Network(network.Shape(filters=4, terms=2)).eval()
    x = torch.rand(3, 1, 28, 28, requires_grad=True)
    net.centre_on(x.detach())
    y = net(x)
    for logit in y.flatten():
        (slope,) = torch.autograd.grad(logit, x, retain_graph=True)
        assert slope.abs().sum() == 1
        assert slope.abs().max() == 1


def test_constants_can_be_folded_into_the_weights(network):
    torch.manual_seed(0)
    net = network.Network(network.Shape(filters=4, terms=2)).eval()
    x = torch.rand(5, 1, 28, 28)
    net.centre_on(x)
    expected = net(x)
    with torch.no_grad():
        net.dilation.weight -= net.centre.mean[:, None, None, None]
        net.erosion.weight += net.centre_terms.mean[:, None]
        net.centre.mean.zero_()
        net.centre_terms.mean.zero_()
    torch.testing.assert_close(net(x), expected)
