"""The guard for a torchvision whose compiled operators cannot load, on fake installations in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REGISTERS = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""


def install(folder: Path, init: str = "", version: str | None = "0.28.0+cu999", requires: str | None = None) -> None:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(init)
    if version is not None:
        (package / "version.py").write_text(f"__version__ = '{version}'\n")
    if requires is not None:
        info = folder / "torchvision-0.28.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\nRequires-Dist: {requires}\n"
        )


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the fake installation first on the path."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{textwrap.dedent(code)}"
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


GUARD = """
from morphlightning import vision
print(vision.guard(), vision.guard(), "torchvision" in sys.modules)
"""


def test_the_fake_fails_like_the_real_one(tmp_path: Path) -> None:
    install(tmp_path, REGISTERS)
    assert "torchvision::nms does not exist" in run(tmp_path, "import torchvision").stderr


def test_a_build_for_another_device_is_guarded(tmp_path: Path) -> None:
    install(tmp_path, REGISTERS)
    done = run(tmp_path, GUARD + "import torchvision\nprint(vision.torchvision_status())")
    assert done.stdout.startswith("True True False"), done.stderr
    for part in ("guarded", "cannot load", "same index", "pip uninstall torchvision", "before lightning"):
        assert part in done.stdout


def test_a_build_for_another_torch_is_guarded(tmp_path: Path) -> None:
    install(tmp_path, REGISTERS, version="0.28.0", requires="torch (==1.0.0)")
    assert run(tmp_path, GUARD).stdout.startswith("True True False")


@pytest.mark.parametrize("requires", [None, "torch"])
def test_a_healthy_one_is_left_alone_and_not_imported(tmp_path: Path, requires: str | None) -> None:
    install(tmp_path, "raise SystemExit('imported')", version="0.28.0", requires=requires)
    done = run(tmp_path, GUARD)
    assert done.stdout.strip() == "False False False", done.stderr


def test_a_mismatch_whose_operators_load_is_left_alone(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "torchvision" / "_C.so").touch()
    code = """
    import torch
    torch.ops.load_library = lambda path: print(path)
    from morphlightning import vision
    print(vision.guard(), vision.torchvision_status())
    """
    done = run(tmp_path, code)
    assert "_C.so\nFalse healthy: torchvision" in done.stdout, done.stderr


def test_a_mismatch_whose_operators_are_there_but_cannot_load_is_guarded(tmp_path: Path) -> None:
    install(tmp_path, REGISTERS)
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"no library")
    assert run(tmp_path, GUARD).stdout.startswith("True True False")


def test_without_a_version_file_there_is_nothing_to_compare(tmp_path: Path) -> None:
    install(tmp_path, version=None)
    assert run(tmp_path, GUARD).stdout.strip() == "False False False"


def test_one_that_is_broken_otherwise_is_explained(tmp_path: Path) -> None:
    install(tmp_path, "raise ImportError('libfoo.so is missing')")
    code = """
    from morphlightning import errors, vision
    print(vision.torchvision_status())
    try:
        vision.import_torchvision()
    except errors.ConfigError as error:
        print(error)
    """
    lines = run(tmp_path, code).stdout.splitlines()
    assert lines[0].startswith("broken: ")
    assert all("libfoo.so is missing" in line and "same index" in line for line in lines)
    assert len(lines) == 2


def test_import_gives_the_module(tmp_path: Path) -> None:
    install(tmp_path, "answer = 42", version="0.28.0")
    code = "from morphlightning import vision\nprint(vision.import_torchvision().answer, vision.torchvision_status())"
    assert run(tmp_path, code).stdout.startswith("42 healthy: torchvision")


def test_absence_says_how_to_install(tmp_path: Path) -> None:
    code = """
    import importlib.util
    importlib.util.find_spec = lambda name: None
    from morphlightning import errors, vision
    print(vision.guard(), vision.torchvision_status())
    try:
        vision.import_torchvision()
    except errors.ConfigError as error:
        print(error)
    """
    lines = run(tmp_path, code).stdout.splitlines()
    assert lines[0].startswith("False absent")
    assert "pip install 'morphlightning[vision]'" in lines[1]
