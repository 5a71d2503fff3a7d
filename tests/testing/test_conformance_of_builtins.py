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


@pytest.mark.parametrize("mode", ["incremental", "memoryless", "ema"])
def test_every_mode_of_lifted_training_conforms(mode: str) -> None:
    report = check_component("optimizers", {"name": "lifted", "mode": mode})
    assert {"steps_once_a_batch", "changes_the_network", "resumes_bit_for_bit"} <= set(report.passed)
