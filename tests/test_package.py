"""The distribution: what is in the wheel, and what README says."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_two_import_packages_only(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"morphlightning", "morphlightning_plugins"}
    assert "morphlightning/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_every_module(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for top, folder in (("morphlightning", ROOT), ("morphlightning_plugins", ROOT / "plugins")):
        modules = {str(path.relative_to(folder)) for path in (folder / top).rglob("*.py")}
        assert modules <= inside


def test_installed_entry_points_are_those_of_pyproject():
    # a stale editable installation would show the entry points of another day
    for group, declared in PYPROJECT["project"]["entry-points"].items():
        ours = {e.name: e.value for e in entry_points(group=group) if e.value.startswith("morphlightning")}
        assert ours == declared, f"{group}: run `pip install -e .` again"


@pytest.mark.slow
def test_wheel_alone_runs_the_demo(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    program = "import morphlightning; assert 'site' in morphlightning.__file__; "
    program += "from morphlightning.cli import main; raise SystemExit(main(['demo', '--epochs', '1', '--run', 'out']))"
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert list((tmp_path / "out").rglob("figures/*.png"))


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_example_trains_as_pasted(tmp_path):
    example = next(block for block in readme_blocks("python") if "Trainer" in block)
    assert len([line for line in example.splitlines() if line.strip()]) <= 17
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"test/accuracy\W+([0-9.]+)", done.stdout)[1])
    assert accuracy > 0.9


def test_readme_plugin_passes_the_conformance_kit(tmp_path, monkeypatch):
    block = next(block for block in readme_blocks("python") if block.startswith("# half.py"))
    (tmp_path / "half_of_readme.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    from half_of_readme import Half

    from morphlightning import registry
    from morphlightning.testing import check_component

    with registry.registered("derivatives", "half_of_readme", Half):
        check_component("derivatives", {"name": "half_of_readme", "keep": 0.7})


def test_documents_are_there():
    documents = [f"docs/{name}.md" for name in ("architecture", "conventions", "diagnostics", "plugins", "reliability")]
    for name in ("README.md", "CHANGELOG.md", "LICENSE", *documents):
        assert (ROOT / name).read_text().strip()
    links = re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
