"""The comparison measures what it says, with the same budget for all."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from morphlightning.lipschitz import LipschitzNetwork

FOLDER = Path(__file__).parents[2] / "recipes" / "spline_vs_relu"


def test_targets_are_1_lipschitz_and_have_kinks(recipe) -> None:
    for seed in range(5):
        x = torch.linspace(-1, 1, 20001, dtype=torch.float64)
        slopes = recipe("regression").target(24, seed)(x).diff() / x.diff()
        assert slopes.abs().max() <= 1 + 1e-9
        assert (slopes.abs() > 1 - 1e-9).double().mean() > 0.3
        assert 8 <= int((slopes.diff().abs() > 1e-6).sum()) <= 2 * 24


def test_splines_learn_a_target_better_than_relu_and_groupsort(recipe) -> None:
    """The claim of the recipe, on a small instance; the recipe itself has more targets, seeds and learning rates."""
    regression = recipe("regression")
    setting = regression.Setting(kinks=8, samples=100, width=8, wide=8, steps=150, more_steps=150, seeds=1)
    contestants = regression.contestants(setting)
    fits = {
        name: [regression.train(contestants[name], 0.03, 0.0, seed, setting) for seed in (0, 1)]
        for name in ("spline", "ReLU", "GroupSort")
    }
    errors = {name: sum(fit.error for fit in found) for name, found in fits.items()}
    assert errors["spline"] < min(errors["ReLU"], errors["GroupSort"])
    assert all(fit.network.lipschitz_spec().constant <= 1 for found in fits.values() for fit in found)


def test_free_networks_have_the_shape_of_constrained_ones(recipe) -> None:
    classification = recipe("classification")
    relu = recipe("activations").FREE["ReLU"]
    free = classification.free_network((1, 28, 28), (16,), (4, 8), relu)
    bound = LipschitzNetwork((1, 28, 28), (16,), 10, (4, 8), relu)
    x = torch.randn(2, 1, 28, 28)
    for one, other in zip(free, bound, strict=True):
        shapes = [parameter.shape for parameter in one.parameters()]
        assert shapes == [parameter.shape for parameter in other.parameters()]
    assert free(x).shape == bound(x).shape == (2, 10)


def test_margins_are_those_of_the_class_over_the_best_of_the_others(recipe) -> None:
    classification = recipe("classification")
    outputs = torch.tensor([[3.0, 1.0, 2.5], [0.0, 1.0, 4.0]])
    found = classification.margins(torch.nn.Identity(), (outputs, torch.tensor([0, 1])))
    assert found.tolist() == [0.5, -3.0]
    one = classification.Trained(torch.nn.Identity(), 0.0, 2.0, found)
    assert one.accuracy == 0.5
    torch.testing.assert_close(one.radii, torch.tensor([0.5 / 2**1.5, 0.0]))


def test_batches_pass_through_all_samples_in_each_epoch(recipe) -> None:
    samples = (torch.arange(10.0)[:, None], torch.arange(10))
    seen = [y.tolist() for _, y in recipe("classification").batches(samples, 5, 4, seed=0)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(10))
    assert seen[0] != seen[2]


@pytest.mark.slow
def test_a_run_writes_tables_runs_and_figures(tmp_path) -> None:
    command = [sys.executable, FOLDER, "--preset", "tiny", "--only", "regression", "--results", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    rows = list(csv.DictReader((folder / "regression.csv").read_text().splitlines()))
    assert {row["activation"] for row in rows} >= {"spline", "ReLU", "PReLU", "GroupSort"}
    assert all(float(row["constant"]) <= 1 for row in rows if row["seed"] != "tuning")
    assert "| --: |" in (folder / "findings.md").read_text()
    assert {path.name for path in folder.glob("*.png")} == {"regression_fits.png", "regression_errors.png"}


@pytest.mark.slow
def test_a_missing_data_set_is_named(tmp_path) -> None:
    command = [sys.executable, FOLDER, "--preset", "tiny", "--only", "classification", "--data-dir", tmp_path / "none"]
    done = subprocess.run([*command, "--results", tmp_path / "results"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "MNIST" in done.stderr
    assert "Traceback" not in done.stderr
