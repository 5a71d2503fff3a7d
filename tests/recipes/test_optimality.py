"""The recipe runs from end to end, and says what it promises."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "optimality"


@pytest.mark.slow
def test_one_variable_is_certified_exactly(tmp_path) -> None:
    command = [sys.executable, FOLDER, "--preset", "tiny", "--only", "one_variable", "--results", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    rows = list(csv.DictReader((folder / "one_variable.csv").read_text().splitlines()))
    grown = [row for row in rows if row["network"] == "grown"]
    assert [float(row["slices"]) for row in grown] == [0, 1, 2]
    assert all(float(row["polar_lower"]) == pytest.approx(float(row["polar_upper"])) for row in rows)
    assert "| --: |" in (folder / "findings.md").read_text()
    assert {path.name for path in folder.glob("*.png")} == {"one_variable_growth.png"}


@pytest.mark.slow
def test_images_are_certified_where_a_bound_is_known(tmp_path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 80)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([2051, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([2049, count], dtype=">i4").tobytes() + labels.tobytes()
        )
    command = [sys.executable, FOLDER, "--preset", "tiny", "--only", "images", "--data-dir", tmp_path / "data"]
    done = subprocess.run([*command, "--results", tmp_path / "results"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    rows = list(csv.DictReader((folder / "images.csv").read_text().splitlines()))
    bounded = {row["network"].partition(",")[0] for row in rows if row["polar_upper"]}
    assert bounded == {"linear factors", "gain dilations", "ReLU neurons"}
    assert all(row["gap_estimated"] and not row["gap_certified"] for row in rows if row["network"].startswith("conv"))
    assert {path.name for path in folder.glob("*.png")} == {"images_growth.png"}


@pytest.mark.slow
def test_a_missing_data_set_is_named(tmp_path) -> None:
    command = [sys.executable, FOLDER, "--preset", "tiny", "--only", "images", "--data-dir", tmp_path / "none"]
    done = subprocess.run([*command, "--results", tmp_path / "results"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "MNIST" in done.stderr
    assert "Traceback" not in done.stderr
