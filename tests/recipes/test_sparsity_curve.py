"""The recipe writes a table, a figure and facts, and its figures are those of the theory."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from morphlightning.errors import DataError

RECIPE = Path(__file__).parents[2] / "recipes" / "sparsity_curve.py"


def test_recipe_on_digits(tmp_path):
    earlier = tmp_path / "results" / "earlier.csv"
    earlier.parent.mkdir()
    earlier.write_text("kept")
    short = ("--seeds", "0", "--filters", "40", "--epochs", "1", "--results", tmp_path / "results")
    command = [sys.executable, RECIPE, *short]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # no MNIST here
    assert done.returncode == 0, done.stderr
    assert "Digits, 40 filters, 1 epochs, 1 seeds: test accuracy in %" in done.stdout
    assert earlier.read_text() == "kept"

    (table,) = (path for path in tmp_path.glob("results/*.csv") if path != earlier)
    points = list(csv.DictReader(table.read_text().splitlines()))
    assert {point["method"] for point in points} == {"wins", "norm", "ReLU norm", "small", "ReLU small"}
    wins = [point for point in points if point["method"] == "wins"]
    whole, exact, *others = wins
    assert (whole["threshold"], whole["filters"]) == ("", "40")
    assert (exact["threshold"], exact["train_accuracy"]) == ("0.0", whole["train_accuracy"])
    sizes = [int(point["filters"]) for point in (exact, *others)]
    assert sizes[0] < 40
    assert sizes == sorted(sizes, reverse=True)
    for point in points:
        per_filter, more = 64 + 1 + 10, 10 if point["method"].startswith("ReLU") else 0
        assert int(point["parameters"]) == int(point["filters"]) * per_filter + more

    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    about = json.loads(table.with_suffix(".json").read_text())
    assert about["versions"]["torch"]
    assert "sparsity_curve.py" in about["command"]


def test_a_named_folder_without_mnist_is_an_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RECIPE.parent)
    recipe = importlib.import_module("sparsity_curve")
    with pytest.raises(DataError, match="nothing"):
        recipe.data_of(tmp_path / "nothing", digits=False)
    assert type(recipe.data_of(None, digits=True)).__name__ == "Digits"
