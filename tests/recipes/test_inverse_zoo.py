"""The recipe reconstructs with every method, tunes on other images than it tests on, and overwrites nothing."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from morphlightning.errors import ConfigError, DataError

FOLDER = Path(__file__).parents[2] / "recipes" / "inverse_zoo"


@pytest.fixture
def module(monkeypatch):
    """Imports modules of the recipe as it does itself, and forgets them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def images(module):
    return module("images").Images.drawn(24)


@pytest.mark.parametrize("name", ["deblurring", "inpainting", "super-resolution", "fourier", "ct"])
def test_total_variation_improves_every_start(name, module, images):
    problem = module("problems").PROBLEMS[name](24)
    assert problem.operator.norm_bound() <= 1.001
    study = module("study").Study(problem, images, 60)
    start, found = study.start(), study.run(module("methods").total_variation())
    assert found.mean("psnr") > start.mean("psnr") + 0.5
    assert "converges" in found.guarantee


def test_tuning_finds_the_best_step_of_every_ladder(module):
    methods = module("methods")
    ladders = {"a": methods.ladder(1.0, 2.0, 5, 5), "b": methods.ladder(1.0, 2.0, 5, 5)}
    method = methods.Method("", "", ladders, lambda: None)
    seen = []

    def quality(settings):
        seen.append(tuple(settings.values()))
        return -abs(settings["a"] - 8) - abs(settings["b"] - 0.25)

    assert module("study").climb(method, quality) == {"a": 8.0, "b": 0.25}
    assert len(seen) == len(set(seen))


def test_the_denoiser_is_firmly_nonexpansive_and_the_unrolled_network_stable(module, images):
    networks = module("networks")
    denoiser = networks.denoiser(images, layers=3, features=4, steps=3)
    assert denoiser.averagedness() <= 0.5
    network = networks.unrolled(module("problems").deblurring(24), images, layers=2, features=3, steps=3)
    assert network.stability() is not None
    assert not any(p.requires_grad for p in network.parameters())


def test_images_are_of_one_group_each(module, tmp_path):
    from PIL import Image

    for folder, side, count in (("Set12", 256, 3), ("Train400", 180, 8)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            Image.new("L", (side, side), 10 * i + (100 if side == 180 else 5)).save(tmp_path / folder / f"{i}.png")
    images = module("images").Images.folder(tmp_path, 128, 2)
    assert images.test.shape == (2, 1, 128, 128)
    assert images.tune.shape == (4, 1, 128, 128)
    groups = [set(g.unique().tolist()) for g in (images.test, images.tune, images.train)]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
    patches = images.patches(3, 40, torch.Generator().manual_seed(0))
    assert patches.shape == (3, 1, 40, 40)


def test_a_report_has_tables_pictures_and_values(module, images, tmp_path):
    methods = module("methods")
    denoiser = module("networks").denoiser(images, layers=2, features=2, steps=1)
    study = module("study").Study(module("problems").inpainting(24), images, 5)
    ways = [methods.total_variation(), methods.forward_backward(denoiser), methods.admm(denoiser)]
    report = module("report").Report.begin(tmp_path, threads=1)
    report.problem("pixels are missing", [study.start(), *(study.run(way) for way in ways)], images)
    report.finish(1.0)
    assert {path.name for path in report.folder.iterdir()} == {
        "facts.txt", "findings.md", "inpainting.png", "residuals.png", "runs.csv"
    }  # fmt: skip
    rows = list(csv.DictReader((report.folder / "runs.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == [m for m in ("start", "TV", "PnP-FBS", "PnP-ADMM") for _ in range(2)]
    assert (report.folder / "findings.md").read_text().count("converges to a fixed point") == 2


def test_missing_files_are_named(module, tmp_path):
    with pytest.raises(DataError, match="Set12 and Train400"):
        module("images").Images.folder(tmp_path, 128, 2)
    with pytest.raises(ConfigError, match="denoise_train400"):
        module("methods").ridge("CRR", "", tmp_path / "no.ckpt")


@pytest.mark.slow
def test_the_command_runs_all_problems(tmp_path):
    command = [sys.executable, FOLDER, "--preset", "quick", "--results", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert len(rows) == 5 * 5 * 2
