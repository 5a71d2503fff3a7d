"""The plugin template and the plugin guide: built, installed beside morphlightning, and used by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "plugins" / "template"

BY_NAME = """
import sys
import lightning as L
import torch
import morphlightning as ml

torch.manual_seed(0)
model = ml.MorphologicalClassifier(
    in_shape=(1, 8, 8), num_classes=10, channels=(4,), hidden=(16,),
    derivative={"name": "half", "keep": 0.2}, activation="leaky_clamp",
)
trainer = L.Trainer(
    max_epochs=1, limit_train_batches=4, limit_val_batches=1, accelerator="cpu", devices=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(model, ml.data.Digits())
rules = {type(m.pipeline.policy.rule).__module__ for m in model.modules() if hasattr(m, "pipeline")}
activations = {type(m).__module__ for m in model.modules()}
assert rules == {"morphlightning_example.half"}, rules
assert "morphlightning_example.leaky_clamp" in activations, activations
assert model.hparams["derivative"] == {"name": "half", "keep": 0.2}, model.hparams
trainer.save_checkpoint(sys.argv[1])
"""

LOAD = """
import sys
import morphlightning as ml
model = ml.MorphologicalClassifier.load_from_checkpoint(sys.argv[1], weights_only=True)
print(next(m.pipeline.policy.rule for m in model.modules() if hasattr(m, "pipeline")))
"""

CONFIG = """
trainer:
  max_epochs: 1
  limit_train_batches: 4
  limit_val_batches: 1
  accelerator: cpu
  devices: 1
model:
  class_path: morphlightning.models.MorphologicalClassifier
  init_args:
    in_shape: [1, 8, 8]
    num_classes: 10
    channels: [4]
    hidden: [16]
    derivative: {name: half, keep: 0.2}
    activation: leaky_clamp
data:
  class_path: morphlightning.data.Digits
"""


def run(*command: str | Path, site: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(site or ""), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env.pop("MORPHLIGHTNING_PLUGINS", None)
    return subprocess.run([sys.executable, *map(str, command)], env=env, cwd=cwd, capture_output=True, text=True)


def succeed(*command: str | Path, site: Path | None = None, cwd: Path | None = None) -> str:
    done = run(*command, site=site, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed template and nothing else, made offline from its wheel."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    succeed(*pip, "wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", folder, folder / "source")
    (wheel,) = folder.glob("morphlightning_example-*.whl")
    succeed(*pip, "install", "--no-index", "--no-deps", "--target", folder / "site", wheel)
    return folder / "site"


@pytest.fixture(scope="module")
def checkpoint(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with components of the template, trained through Python."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "train.py").write_text(BY_NAME)
    succeed("-W", "error::UserWarning:morphlightning", "train.py", "last.ckpt", site=site, cwd=folder)
    return folder / "last.ckpt"


def test_the_template_is_listed(site: Path, tmp_path: Path) -> None:
    listed = json.loads(succeed("-m", "morphlightning", "plugins", "--json", site=site, cwd=tmp_path))
    found = {entry["qualified"]: entry for entry in listed if entry["distribution"] == "morphlightning-example"}
    assert set(found) == {"morphlightning-example:half", "morphlightning-example:leaky_clamp"}
    assert {(entry["state"], entry["version"], entry["api_version"]) for entry in found.values()} == {
        ("ok", "0.1.0", "1.0")
    }
    assert found["morphlightning-example:half"]["summary"].startswith("The winner keeps a part")
    shown = succeed("-m", "morphlightning", "plugins", "show", "half", site=site, cwd=tmp_path)
    assert "The winner's part, in [0, 1]" in shown


def test_the_templates_own_tests_pass(site: Path, tmp_path: Path) -> None:
    shutil.copytree(TEMPLATE / "tests", tmp_path / "tests")
    out = succeed("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", site=site, cwd=tmp_path)
    assert re.search(r"\b4\d passed", out), out


def test_a_model_trains_with_it_through_python(checkpoint: Path) -> None:
    assert checkpoint.stat().st_size > 0


def test_a_checkpoint_names_the_plugin_that_it_needs(checkpoint: Path, site: Path, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    assert "Half(keep=0.2, eps=0.0)" in succeed(script, checkpoint, site=site)
    failed = run(script, checkpoint)
    assert failed.returncode != 0
    assert "PluginNotFoundError" in failed.stderr
    assert "derivatives 'half' from morphlightning-example 0.1.0" in failed.stderr
    assert "pip install morphlightning-example==0.1.0" in failed.stderr


def test_a_model_trains_with_it_through_yaml(site: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text(CONFIG)
    succeed("-m", "morphlightning", "fit", "--config", "fit.yaml", site=site, cwd=tmp_path)
    saved = [path.read_text() for path in tmp_path.rglob("hparams.yaml")] + [
        path.read_text() for path in tmp_path.rglob("config.yaml")
    ]
    assert any("half" in text and "leaky_clamp" in text for text in saved), list(tmp_path.rglob("*"))


def test_a_typing_error_in_the_yaml_has_a_friendly_end(site: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text(CONFIG.replace("name: half", "name: hlaf"))
    failed = run("-m", "morphlightning", "fit", "--config", "fit.yaml", site=site, cwd=tmp_path)
    assert failed.returncode != 0
    assert "did you mean 'half'" in failed.stderr + failed.stdout


def test_the_example_of_the_plugin_guide_works(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "plugins.md").read_text()
    rule, attempt, model, *_ = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    imports = "from morphlightning.models import MorphologicalClassifier"
    body = f"{rule}\n{imports}\n{attempt}    {model}"  # the model is made where "half" is registered
    (tmp_path / "guide.py").write_text(body)
    assert "0 failed" in succeed("guide.py", cwd=tmp_path)
