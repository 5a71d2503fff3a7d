"""Every built-in component passes the checks that anybody's has to pass."""

from __future__ import annotations

import pytest

from morphlightning import registry
from morphlightning.interfaces import KINDS
from morphlightning.testing import check_component


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_component_conforms(kind: str) -> None:
    names = [info.name for info in registry.survey(kind) if info.distribution == "morphlightning"]
    assert names
    for name in names:
        report = check_component(kind, f"morphlightning:{name}")
        assert len(report.passed) >= 4, report
