"""The recipe measures what it says, writes what it shows, and overwrites nothing."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "recipes" / "flows"


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("part", ["densities", "digits"])
def test_a_part_writes_runs_a_table_and_pictures(part, recipe, tmp_path, monkeypatch):
    few = {name: recipe("study").METHODS[name] for name in ("affine coupling", "quadratic-spline coupling")}
    monkeypatch.setattr(recipe(part), "METHODS", few)
    if part == "densities":
        monkeypatch.setattr(recipe(part), "DENSITIES", ("rings", "checkerboard"))
    seeds = (0, 1) if part == "digits" else (0,)
    report = recipe("shared.report").Report.begin(tmp_path, threads=1)
    with report.part(part, recipe(part).__doc__):
        recipe(part).run(recipe("study").Setting("quick", seeds), report)
    runs = rows(report.folder / f"{part}_runs.csv")
    assert {row["method"] for row in runs} == set(few)
    assert {row["seed"] for row in runs} == set(map(str, seeds))
    findings = (report.folder / "findings.md").read_text()
    assert "| --: |" in findings
    assert "quadratic-spline coupling" in findings
    (picture,) = report.folder.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_runs(tmp_path):
    arguments = ("--preset", "quick", "--only", "digits", "--results", str(tmp_path))
    done = subprocess.run([sys.executable, FOLDER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert torch.__version__ in (folder / "facts.txt").read_text()
    assert "too small to judge by" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("--only", "nonsense"), "digits"), (("--seeds", "-1"), ">= 0"), (("--threads", "0"), "> 0")],
)
def test_what_cannot_be_done_is_refused(arguments, complaint, capsys):
    parser = runpy.run_path(str(FOLDER / "__main__.py"))["arguments"]()
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert complaint in capsys.readouterr().err


def test_known_entropies_are_right(recipe):
    """By the density at points of it, for the mixture; by counting fields, for the board."""
    densities = recipe("densities")
    points = densities.ToyDensity("eight_gaussians", test_size=50_000).points("test")
    angles = torch.arange(8) * torch.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    each = torch.distributions.Normal(centres, 0.2).log_prob(points[:, None]).sum(-1)
    entropy = -(each.logsumexp(1) - torch.tensor(8.0).log()).mean()
    assert float(entropy) == pytest.approx(densities.ENTROPIES["eight_gaussians"], abs=0.02)
