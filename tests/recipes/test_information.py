"""The comparison measures what it says."""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from morphlightning.guarantees.information import TapChain, evidence

FOLDER = Path(__file__).parents[2] / "recipes" / "information"


def write_mnist(folder: Path, count: int) -> None:
    """Files in MNIST's format, of noise with a bright square that tells the class."""
    draw = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = torch.randint(0, 60, (count, 28, 28), generator=draw, dtype=torch.uint8)
        for number, label in enumerate(labels.tolist()):
            images[number, 4 * (label // 5) + 8 :, 5 * (label % 5) :][:4, :4] = 250
        head = b"".join(n.to_bytes(4, "big") for n in (0x0803, count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.numpy().tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (0x0801, count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.numpy().tobytes())


def test_a_network_is_trained_masked_and_bounded(recipe, tmp_path) -> None:
    write_mnist(tmp_path, 3000)
    bound = recipe("bound")
    setting = replace(bound.PRESETS["tiny"], train_size=None, width=12, epochs=15, test_size=None)
    chosen = argparse.Namespace(data_dir=str(tmp_path), dataset="mnist")
    train = bound.all_training_images(chosen, setting)
    assert len(train[1]) == 3000
    one = bound.certified(train, setting, 0)
    found = bound.row(one, train, 3, 0)
    assert found["training error"] < found["Gibbs bound"] < 0.6
    assert found["test error of draws"] <= found["share of margins up to gamma"]  # here the test images are those
    assert found["winning taps"] <= found["taps left"] < found["weights"]
    again = evidence(TapChain(one.chain.sequence), bound.batches(train, 700))
    assert torch.equal(again.failures, one.seen.failures)


def test_noise_is_as_large_as_it_may_be(recipe) -> None:
    measures = recipe("measures")
    assert measures.tolerated(lambda noise: float(noise < 0.3), 1.0, 20) == pytest.approx(0.3, rel=1e-3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(300, 4)
    samples = (x, network(x).argmax(1))
    bits, noise = measures.bits_of_weights(network, samples, 0.05)
    count, mean_square = 4 * 6 + 6 + 6 * 3 + 3, 0.0
    for parameter in network.parameters():
        mean_square += (parameter.numel() - 1) / 2  # of deviations from the mean, in units of the deviation
    expected = count * (-math.log(noise) + (noise**2 - 1) / 2) + mean_square
    assert bits == pytest.approx(expected / math.log(2), rel=1e-4)
    passing = measures.bits_of_activations(network, 1, samples, 0.05)
    tighter = measures.bits_of_activations(network, 1, samples, 0.01)
    assert all(0 < passing[kind] <= tighter[kind] for kind in ("gumbel", "gaussian"))


def test_starts_of_a_neuron_are_those_of_the_initializers(recipe) -> None:
    neurons = recipe("neurons")
    setting = neurons.PRESETS["tiny"]
    found = neurons.errors("Gumbel 0.1", replace(setting, samples=300), 0)
    assert found["EM"] < found["shifted"] < found["residuation"]


@pytest.mark.slow
def test_the_whole_command(tmp_path) -> None:
    write_mnist(tmp_path, 300)
    command = [sys.executable, FOLDER, "--data-dir", tmp_path, "--preset", "tiny", "--results", tmp_path / "results"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder,) = (tmp_path / "results").iterdir()
    written = {path.name for path in folder.iterdir()}
    assert written >= {"bound.csv", "comparison.csv", "neurons.csv", "bound_margins.png", "comparison_margins.png"}
    with open(folder / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == ["morphological", "ReLU MLP", "CNN"]
    assert [bool(row["Gibbs bound"]) for row in rows] == [True, False, False]
    assert "was not derived for layer '0' (Conv2d)" in (folder / "findings.md").read_text()
