"""Every recipe is a valid configuration, and running one writes results that are never overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from morphlightning.cli.training import TrainingCLI, process_arguments

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_builds(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["morphlightning"])
    with process_arguments(["--config", str(recipe), "--run", str(tmp_path / "run")]):
        cli = TrainingCLI(run=False)
    assert cli.model(cli.model.example_input_array).shape[0] == 2
    assert cli.trainer.max_epochs >= 1
    assert f"recipes/run.py {recipe.stem}" in recipe.read_text()
    assert f"recipes/run.py {recipe.stem}" in (RECIPES.parent / "README.md").read_text()


def test_digits_recipe_writes_results_beside_earlier_ones(tmp_path):
    results = tmp_path / "results"
    (results / "digits_classifier").mkdir(parents=True)
    (results / "digits_classifier/earlier.json").write_text("{}")
    command = [sys.executable, RECIPES / "run.py", "digits_classifier", "--results", results, "--seeds", "0", "1"]
    short = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--figures", "false"]
    done = subprocess.run([*command, *short], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean" in done.stdout
    assert (results / "digits_classifier/earlier.json").read_text() == "{}"
    (written,) = results.glob("digits_classifier/*-seed1.json")
    record = json.loads(written.read_text())
    assert record["seed"] == 1
    assert 0 < record["metrics"]["accuracy"] <= 1
    assert record["versions"]["torch"]
    assert "seed_everything: 1" in record["config"]
    assert len(list(results.glob("digits_classifier/*.csv"))) == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2
