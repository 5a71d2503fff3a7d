"""`morphlightning fit|validate|test|predict`: runs, defaults, and errors in a few lines."""

import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from morphlightning.cli import main
from morphlightning.models import RidgeRegularizerDenoiser

MODEL = {
    "class_path": "morphlightning.MorphologicalClassifier",
    "init_args": {"in_shape": [1, 8, 8], "channels": [], "hidden": [6], "derivative": "bouligand"},
}
DATA = {"class_path": "morphlightning.data.Digits", "init_args": {"train_size": 64, "batch_size": 32}}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["morphlightning"])

    def write(name="config.yaml", model=None, data=None, trainer=None, **top):
        content = {
            "model": {**MODEL, "init_args": {**MODEL["init_args"], **(model or {})}},
            "data": {**DATA, "init_args": {**DATA["init_args"], **(data or {})}},
            "trainer": {**TRAINER, **(trainer or {})},
            **top,
        }
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return str(tmp_path / name)

    return write


def test_fit_writes_logs_checkpoints_figures_and_config(config, tmp_path):
    assert main(["fit", "--config", config(), "--run", "runs/first"]) == 0
    run = tmp_path / "runs/first"
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "checkpoints/last.ckpt").exists()
    assert len(list((run / "checkpoints").glob("best-*.ckpt"))) == 1
    assert list((run / "figures").glob("confusion_matrix*.png"))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["derivative"] == "bouligand"


def test_a_denoiser_learns_from_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["morphlightning"])
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(draw.integers(0, 256, (24, 20), dtype=np.uint8)).save(folder / f"{number}.png")
    model = {"channels": [1, 4], "kernel_size": 3, "optimizer": {"name": "adam", "rates": {"activation": 1e-4}}}
    content = {
        "model": {"class_path": "morphlightning.RidgeRegularizerDenoiser", "init_args": model},
        "data": {
            "class_path": "morphlightning.data.ImageFolderDenoising",
            "init_args": {"root": str(folder), "patch_size": 16, "val_fraction": 0.25},
        },
        "trainer": TRAINER,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", "config.yaml", "--run", "runs/first"]) == 0
    figures = {path.name.split("-")[0] for path in (tmp_path / "runs/first/figures").rglob("*.png")}
    assert any("reconstructions" in name for name in figures)
    assert any("spline" in name for name in figures)
    assert not any("structuring" in name for name in figures)
    path = tmp_path / "runs/first/checkpoints/last.ckpt"
    assert RidgeRegularizerDenoiser.load_from_checkpoint(path).hparams.kernel_size == 3


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_checkpoint_of_the_command_line_loads_safely_and_resumes(config, tmp_path):
    assert main(["fit", "--config", config(), "--run", "runs/first"]) == 0
    path = tmp_path / "runs/first/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["derivative"] == "bouligand"
    resumed = ["fit", "--config", config(trainer={"max_epochs": 2}), "--run", "runs/second", "--ckpt_path", str(path)]
    assert main(resumed) == 0
    assert torch.load(tmp_path / "runs/second/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    from morphlightning import MorphologicalClassifier

    assert MorphologicalClassifier.load_from_checkpoint(path).hparams.derivative == "bouligand"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_run(config, command):
    assert main([command, "--config", config(), "--run", f"runs/{command}"]) == 0


def test_everything_can_be_switched_off(config, tmp_path):
    off = {"logger": False, "enable_checkpointing": False}
    assert main(["fit", "--config", config(trainer=off)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_one_callback_and_a_checkpoint_io_of_the_users_own(config, tmp_path):
    own = {
        "callbacks": {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}},
        "plugins": {"class_path": "lightning.fabric.plugins.TorchCheckpointIO"},
    }
    assert main(["fit", "--config", config(trainer=own), "--run", "runs/own"]) == 0
    saved = torch.load(tmp_path / "runs/own/checkpoints/last.ckpt", weights_only=True)
    assert any(name.startswith("EarlyStopping") for name in saved["callbacks"])


def test_plugin_names_on_the_command_line(config, tmp_path):
    arguments = ["--model.heuristic", "count_normalized", "--model.optimizer", "{name: sgd, lr: 0.5}"]
    assert main(["fit", "--config", config(), "--run", "runs/x", *arguments]) == 0
    saved = torch.load(tmp_path / "runs/x/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["heuristic"] == "count_normalized"
    assert saved["optimizer"] == {"name": "sgd", "lr": 0.5}


def test_short_class_names_and_print_config(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["morphlightning"])
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model", "MorphologicalClassifier", "--data", "Digits", "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["derivative"] == "first"


def test_an_existing_run_folder_is_not_touched(config, tmp_path, capsys):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/notes.txt").write_text("keep")
    assert main(["fit", "--config", config(), "--run", "runs/mine"]) == 1
    assert "runs/mine exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs/mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"chanels": [3]}}, "chanels"),
        ({"model": {"channels": "many"}}, "channels"),
        ({"model": {"derivative": "boulgand"}}, "did you mean 'bouligand'"),
        ({"model": {"derivative": {"name": "bouligand", "epsilon": 1}}}, "epsilon"),
        ({"model": {"derivative": {"name": "bouligand", "eps": -1.0}}}, "eps must be >= 0"),
        ({"model": {"optimizer": {"name": "adam", "lr": 0}}}, "lr must be > 0"),
        ({"model": {"head": "quadratic"}}, "head"),
        ({"data": {"batch_size": "x"}}, "batch_size"),
        ({"data": {"batch_size": 0}}, "batch_size"),
        ({"trainer": {"max_epoch": 1}}, "max_epoch"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_configurations_that_cannot_work(config, capsys, change, named):
    assert main(["fit", "--config", config(**change)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 12


def test_malformed_and_missing_yaml(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["morphlightning"])
    (tmp_path / "bad.yaml").write_text("model: [unclosed")
    for name in ("bad.yaml", "absent.yaml"):
        assert main(["fit", "--config", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert len(error.splitlines()) <= 14


def test_errors_of_a_run_are_told_without_a_traceback(config, capsys):
    assert main(["fit", "--config", config(model={"in_shape": [1, 28, 28]}), "--run", "runs/x"]) == 1
    assert "in_shape" in capsys.readouterr().err


def test_usage_and_unknown_commands(capsys):
    for arguments, code in (([], 2), (["nonsense"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
    assert "demo" in capsys.readouterr().out
