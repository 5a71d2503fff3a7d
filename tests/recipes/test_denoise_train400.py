"""The recipe trains every method, scores it and draws; a run that was broken off goes on."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from morphlightning.splines import SplineTable

FOLDER = Path(__file__).parents[2] / "recipes" / "denoise_train400"
NAMES = ("evaluation", "figures", "methods", "networks", "report", "training")
METHODS = ["crr", "wcrr", "relu", "dncnn", "tv"]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import evaluation
    import networks

    yield evaluation, networks
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    """Smooth grey images in the layout of the data."""
    draw = np.random.default_rng(0)
    for folder, count in (("Train400", 6), ("Set12", 5)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(count):
            small = Image.fromarray(draw.integers(0, 256, (6, 6), dtype=np.uint8))
            small.resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / "data" / folder / f"{number:02}.png")
    return tmp_path / "data"


def recipe(*arguments):
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
def test_quick_run_writes_scores_and_figures_and_resumes(data, tmp_path):
    done = recipe("--data-dir", data, "--preset", "quick", "--results", tmp_path / "results", "--threads", 1)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    scores = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    assert len(scores) == len(METHODS) * 3 * 5
    assert all(math.isfinite(float(score["psnr"])) for score in scores)
    for name in ("pictures.png", "learned.png", "curves.png", "table.md"):
        assert (folder / name).stat().st_size > 0
    first = (folder / "table.md").read_text()
    assert [line.split("|")[1].strip() for line in first.splitlines()[2:]] == METHODS
    (folder / "wcrr" / "scores.pt").unlink()
    resumed = recipe("--data-dir", data, "--preset", "quick", "--resume", folder, "--threads", 1)
    assert resumed.returncode == 0, resumed.stderr
    again = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    assert [score["psnr"] for score in again] == [score["psnr"] for score in scores]


def test_missing_data_are_named(tmp_path):
    done = recipe("--data-dir", tmp_path / "nowhere", "--preset", "quick", "--only", "tv", "--results", tmp_path / "r")
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_relu_is_what_its_table_says(modules):
    _, networks = modules
    relu = networks.BiasedRelu(3, slope=2.0)
    with torch.no_grad():
        relu.bias.copy_(torch.tensor([-0.1, 0.0, 0.2]))
    table = relu.table()
    plain = SplineTable(table.knots, table.values)
    x = 0.5 * torch.randn(2, 6, 4, 4)  # two neighbouring channels share a spline
    torch.testing.assert_close(table(x), plain(x))
    torch.testing.assert_close(table.slope(x), plain.slope(x))
    torch.testing.assert_close(table.potential(x), plain.potential(x))
    assert table.slopes.max() == 2


def test_relu_network_begins_with_filters_of_both_signs(modules):
    _, networks = modules
    from methods import ridge

    model = networks.with_relu(ridge(0.0, (1, 8), 3))
    weight = model.regularizer.filters.layers[0].weight
    assert torch.equal(weight[:4], -weight[4:])
    y = torch.rand(2, 1, 16, 16)
    model.train()(y).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_golden_sections_find_the_best_weight(modules):
    evaluation, _ = modules
    asked = []

    def quality(x):
        asked.append(x)
        return -((x - 0.7) ** 2)

    assert evaluation.golden(quality, -1.0, 2.0, steps=12) == pytest.approx(0.7, abs=0.01)
    assert len(asked) == 14
