"""The study measures what it says, never overwrites, and takes the data that are there."""

import csv
import importlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "recipes" / "bouligand_study"
PARTS = ("messages", "teacher_student", "learning_rate", "initialization", "depth_and_position")


@pytest.fixture
def module(monkeypatch):
    """Imports modules of the study as it does itself, and forgets them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(module):
    return module("report").Setting(seeds=(0,), quick=True, data_dir=None)


def study(*arguments):
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


def test_a_quick_run_of_one_part_writes_tables_figure_and_verdicts(tmp_path):
    done = study("--quick", "--only", "messages", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    rows = {row["message"]: row for row in csv.DictReader((folder / "messages_slopes.csv").read_text().splitlines())}
    assert float(rows["best"]["descent %"]) == 100
    assert float(rows["best"]["mean share of the optimum"]) > float(
        rows["first (autograd)"]["mean share of the optimum"]
    )
    assert (folder / "messages_slopes.png").read_bytes().startswith(b"\x89PNG")
    findings = (folder / "findings.md").read_text()
    assert torch.__version__ in findings
    assert "- **holds**: The steepest of eight descends" in findings
    assert "too small to judge by" in done.stdout


@pytest.mark.slow
def test_a_quick_run_of_everything_writes_every_part(tmp_path):
    done = study("--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    for part in PARTS:
        assert list(folder.glob(f"{part}_*.csv")), part
        assert list(folder.glob(f"{part}_*.png")), part


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--only", "nonsense"), "depth_and_position"),
        (("--seeds", "-1"), ">= 0"),
        (("--data-dir", "/nowhere"), "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(arguments, complaint, tmp_path):
    done = study(*arguments, "--results", tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_results_are_not_overwritten(module, tmp_path):
    report = module("report").Report.begin(tmp_path / "results", quick=True)
    with report.part("part", "About."):
        report.runs("table", [{"a": 1}])
        with pytest.raises(FileExistsError):
            report.runs("table", [{"a": 2}])
    assert (report.folder / "part_table.csv").read_text().split() == ["a", "1"]


def test_summary_is_mean_and_deviation_by_group(module):
    report = module("report")
    rows = [{"m": "a", "s": 0, "e": 1.0}, {"m": "a", "s": 1, "e": 3.0}, {"m": "b", "s": 0, "e": 5.0}]
    first, second = report.summary(rows, ["m"], ["e"])
    assert first == {"m": "a", "e": report.Spread(2.0, 2**0.5)}
    assert second == {"m": "b", "e": report.Spread(5.0, 0.0)}
    assert report.pivot([{"m": "a", "x": 1, "e": 7}, {"m": "a", "x": 2, "e": 8}], "m", "x", "e") == [
        {"m": "a", "1": 7, "2": 8}
    ]


def test_slope_is_the_one_sided_derivative(module):
    messages = module("messages")
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        x, w, u = messages.tied_case(generator)
        h = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        t = 1e-4
        moved, there = ((point + w).amax(1) for point in (x + t * h, x))
        expected = (u * (moved - there)).sum() / t
        torch.testing.assert_close(messages.slope(h[None], messages.tied(x, w), u)[0], expected)


def test_dead_weights_never_win(module):
    one = module("teacher_student_one")
    x, _, generator = one.task(0, 50)
    layer = one.Dilation(one.INPUTS, one.OUTPUTS, generator=generator)
    wins = {(i, int((row + layer.weight[i]).argmax())) for row in x for i in range(one.OUTPUTS)}
    assert one.dead(layer, x) == pytest.approx(1 - len(wins) / layer.weight.numel())


def test_counts_reach_a_solution_that_plain_steps_do_not(module, tiny):
    one = module("teacher_student_one")
    methods = {method.label: method for method in one.METHODS}
    plain, counted = (
        one.train(methods[name], "upper", 0, tiny)["mse"] for name in ("first, lr 1", "first + count, lr 1")
    )
    assert counted < plain / 10


def test_small_steps_stay_within_the_radius(module, tiny):
    rate = module("learning_rate")
    small, large = (rate.measure(module("training").Method("", lr=lr), 0, tiny) for lr in (1e-6, 1.0))
    assert small["rows crossing %"] < 0.1 < large["rows crossing %"]
    assert small["mse"] > large["mse"]


def test_the_classifiers_train_with_every_rule(module, tiny):
    classify, images = module("classify"), module("images")
    (digits,) = images.data_sets(tiny, 100)
    for build, _ in module("depth_and_position").NETWORKS.values():
        found = classify.train(build, digits, classify.SOFT, 0, tiny)
        assert 0 <= found["accuracy"] <= 100
        assert found["loss"] < 4


def test_one_sample_reaches_one_path_per_output(module, tiny):
    classify, images = module("classify"), module("images")
    (digits,) = images.data_sets(tiny, 100)
    found = classify.train(classify.dense_output, digits, classify.AUTOGRAD, 0, tiny)
    assert found["sample %"] == pytest.approx(100 / classify.UNITS)  # each of ten rows sends to its winner


def test_data_sets_are_those_that_are_there(module, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes(784 * count)
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(np.arange(count, dtype=np.uint8))
        )
    setting = module("report").Setting((0,), quick=False, data_dir=tmp_path)
    digits, fashion = module("images").data_sets(setting, 5)
    assert digits.name == "digits"
    assert fashion.name == "FashionMNIST"
    assert fashion.x.shape == (5, 1, 28, 28)
    assert fashion.test_y.tolist() == [0, 1, 2, 3]
