"""Fixtures for tests of components; pytest finds them wherever morphlightning is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture
def morph_check() -> Callable[..., Any]:
    """``morph_check(kind, spec)`` runs the conformance checks, as :func:`morphlightning.testing.check_component`."""
    from morphlightning.testing import check_component

    return check_component


@pytest.fixture
def morph_register() -> Iterator[Callable[[str, str, Any], None]]:
    """``morph_register(kind, name, component)`` offers a component by name until the test ends."""
    from morphlightning import registry

    with ExitStack() as stack:
        yield lambda kind, name, component: stack.enter_context(registry.registered(kind, name, component))


@pytest.fixture
def morph_isolated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``morph_isolated("acme-morph", ...)`` hides all plugins but these and the built-in ones until the test ends."""
    return lambda *distributions: monkeypatch.setenv("MORPHLIGHTNING_PLUGINS", ",".join(distributions) or "none")
