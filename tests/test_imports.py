"""What may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "morphlightning"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_package_never_imports_its_plugins(path):
    assert not any(name.split(".")[0] == "morphlightning_plugins" for name in imported(path))


def test_only_the_registry_reads_entry_points():
    readers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name == "entrypoints" for name in imported(path))
    }
    assert readers == {"registry"}


@pytest.mark.parametrize("module", ["lightning", "torchmetrics", "matplotlib", "sklearn", "torchvision"])
def test_import_is_lazy(module):
    code = f"import sys, morphlightning; sys.exit(any(m.split('.')[0] == '{module}' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_loads_no_plugin():
    code = (
        "import sys, morphlightning as ml; ml.functional; ml.registry.names('derivatives');"
        "sys.exit(any(m.split('.')[0] == 'morphlightning_plugins' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_public_names_resolve():
    import morphlightning as ml

    for name in ml.__all__:
        assert getattr(ml, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ml.nothing
