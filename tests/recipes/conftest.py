"""Modules of recipes, imported as the recipes import them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports modules of the recipe that the test file is named after, and forgets them afterwards."""
    folder = RECIPES / request.path.stem.removeprefix("test_")
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.syspath_prepend(folder)
    own = [path.stem for path in folder.glob("*.py")]
    for name in own:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in own:
        sys.modules.pop(name, None)
