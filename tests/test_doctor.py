from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from morphlightning import doctor
from morphlightning.doctor import Check


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphlightning.registry.survey", list)


def find(name: str) -> Check:
    (check,) = [check for check in doctor.report() if check.name == name]
    return check


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    true = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda asked: version if asked == name else true(asked))


@pytest.mark.usefixtures("no_plugins")
def test_this_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    assert "No problem found." in capsys.readouterr().out
    assert doctor.main(json=True) == 0
    checks = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in checks]
    assert {"python", "torch", "lightning", "torchvision pair", "threads", "backend eager", "plugins"} <= set(names)
    assert find("torch").found == metadata.version("torch")


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(("version", "found"), [("2.5.0", "2.5.0, needs >=2.6.6"), (None, "not installed")])
def test_old_or_missing_requirement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str | None, found: str
) -> None:
    pretend(monkeypatch, "lightning", version)
    check = find("lightning")
    assert (check.status, check.found, check.remedy) == ("problem", found, "pip install 'lightning>=2.6.6'")
    assert doctor.main() == 1
    assert "1 problem found." in capsys.readouterr().out


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malicious_lightning(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(monkeypatch, "pytorch-lightning", version)
    check = find("pytorch-lightning release")
    assert check.status == "problem"
    assert "GHSA-w37p-236h-pfx3" in check.found


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("absent (optional)", "ok"),
        ("healthy: a pair", "ok"),
        ("guarded: no operators", "note"),
        ("broken: no import", "problem"),
    ],
)
def test_torchvision_pair(monkeypatch: pytest.MonkeyPatch, said: str, status: str) -> None:
    monkeypatch.setattr("morphlightning.vision.torchvision_status", lambda: said)
    assert find("torchvision pair").status == status


@pytest.mark.parametrize(
    ("distribution", "state", "status"),
    [("acme", "broken", "note"), ("morphlightning", "broken", "problem"), ("morphlightning", "ambiguous", "note")],
)
def test_broken_plugins(monkeypatch: pytest.MonkeyPatch, distribution: str, state: str, status: str) -> None:
    plugin = SimpleNamespace(
        kind="optimizers",
        name="x",
        qualified=f"{distribution}:x",
        distribution=distribution,
        version="1.0",
        state=state,
        error="what went wrong",
    )
    monkeypatch.setattr("morphlightning.registry.survey", lambda: [plugin])
    check = find(f"plugin optimizers {distribution}:x")
    assert check.status == status
    assert "what went wrong" in check.found
    assert check.remedy


@pytest.mark.usefixtures("no_plugins")
def test_callback_factories_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(name="spy", value="acme:make", dist=SimpleNamespace(name="acme"))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == doctor.FACTORIES[0] else [])
    check = find("callbacks factory spy")
    assert check.status == "note"
    assert "acme adds callbacks to every Trainer" in check.found


@pytest.mark.usefixtures("no_plugins")
def test_unavailable_backend_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphlightning.backends.available", lambda: {"eager": "available", "triton": "no GPU"})
    assert find("backend triton") == Check("backend triton", "note", "no GPU")


@pytest.mark.usefixtures("no_plugins")
def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "gone")
    assert find("working folder").status == "problem"


def test_a_check_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def survey() -> None:
        raise RuntimeError("the registry is on fire")

    monkeypatch.setattr("morphlightning.registry.survey", survey)
    check = find("plugins")
    assert check.status == "problem"
    assert check.found == "RuntimeError: the registry is on fire"


def test_lightning_is_not_imported_before_torchvision_was_asked() -> None:
    code = """
import sys
import morphlightning.vision as vision
from morphlightning import doctor, registry
registry.survey = list
vision.torchvision_status = lambda: f"lightning imported: {'lightning' in sys.modules}"
print([check.found for check in doctor.report() if check.name == "torchvision pair"])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "['lightning imported: False']\n"
