"""The optional torchvision: its import, and a guard for one whose compiled operators cannot load.

A torchvision built for CUDA beside a torch built for the CPU cannot load its compiled operators. It then fails while it
registers a fake kernel for the operator ``torchvision::nms``, which was never defined, and lightning and torchmetrics
fail with it, because they import torchvision wherever it is installed. :func:`guard` defines the missing schemas, and
everything of torchvision that is written in Python works (data sets, transforms); the compiled operators themselves
(``ops.nms``, ``ops.deform_conv2d``, ``io.read_image``) stay absent and say so when they are called.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from morphlightning.errors import ConfigError

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'morphlightning[vision]'"
_REMEDY = (
    "install torch and torchvision from the same index (both for the CPU, or both for the same CUDA), "
    "or run `pip uninstall torchvision` if you do not need it"
)
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # torch forgets the schemas when this object goes


def guard() -> bool:
    """Make an installed torchvision importable whose compiled operators cannot load; say whether that was needed.

    Costs a path lookup where torchvision is absent and reads two small files where it is healthy; it never imports
    torchvision. It has to run before the first import of lightning or torchmetrics.
    """
    if _library is not None:
        return True
    if "torchvision" in sys.modules:
        return False
    folder = _folder()
    if folder is None or not _looks_mismatched(folder) or _operators_load(folder):
        return False
    _define_schemas()
    return True


def import_torchvision() -> ModuleType:
    """Import torchvision, with the guard where it is needed.

    Raises:
        ConfigError: torchvision is not installed, or it is and does not import; the message says what to install.
    """
    guard()
    if _folder() is None:
        raise ConfigError(f"torchvision is not installed and this needs it; install it with: {_INSTALL}")
    import torch

    try:
        return importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"torchvision {_version() or '(unknown version)'} is installed but does not import beside "
            f"torch {torch.__version__} ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error


def torchvision_status() -> str:
    """Describe the installed torchvision in a line: absent, healthy, guarded or broken, with the remedy."""
    if _folder() is None:
        return f"absent (optional; {_INSTALL})"
    import torch

    pair = f"torchvision {_version() or '(unknown version)'} beside torch {torch.__version__}"
    try:
        import_torchvision()
    except ConfigError as error:
        return f"broken: {error}"
    if _library is None:
        return f"healthy: {pair}"
    return (
        f"guarded: {pair}: its compiled operators cannot load. Data sets and transforms work, ops.nms, "
        f"ops.deform_conv2d and io.read_image do not, and scripts must import morphlightning before lightning. "
        f"To mend it, {_REMEDY}"
    )


def _folder() -> Path | None:
    """Folder of the installed torchvision, found without importing it."""
    if "torchvision" in sys.modules:
        origin = sys.modules["torchvision"].__file__
    else:
        spec = importlib.util.find_spec("torchvision")
        origin = spec.origin if spec is not None else None
    return Path(origin).parent if origin else None


def _looks_mismatched(folder: Path) -> bool:
    """Compare what torchvision was built for with the torch that is here, by reading text only.

    A torchvision wheel carries its build in the version (``0.28.0+cu130``) and names its torch in its metadata
    (``Requires-Dist: torch==2.13.0``). Custom builds may do neither; they count as matching.
    """
    import torch  # here: where torchvision is absent, `import morphlightning` need not wait for torch

    torch_release, _, torch_build = str(torch.__version__).partition("+")
    build = _build(folder / "version.py")
    if build and build != torch_build and (build != "cpu" or torch_build):
        return True
    try:
        requirements = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return False
    pins = [match[1] for line in requirements if (match := re.match(r"torch\s*\(?==\s*([\w.]+)", line))]
    return any(pin != torch_release for pin in pins)


def _build(version_file: Path) -> str:
    """Build suffix such as ``cu130`` in the text of ``torchvision/version.py``, '' where there is none."""
    if not version_file.is_file():
        return ""
    text = version_file.read_text(encoding="utf-8")
    if match := re.search(r"__version__\s*=\s*['\"][^'\"+]*\+([\w.]+)['\"]", text):
        return match[1]
    if match := re.search(r"^cuda\s*=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE):
        return f"cu{match[1]}{match[2]}"
    return ""


def _operators_load(folder: Path) -> bool:
    """Try the compiled operators themselves; asked only where the builds look mismatched."""
    import torch

    libraries = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")) + sorted(folder.glob("_C*.dylib"))
    for library in libraries:
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return True
    return False


def _define_schemas() -> None:
    import torch

    global _library
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)


def _version() -> str | None:
    try:
        return metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return None
