from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import ConfigError, PluginContractError, PluginNotFoundError
from morphlightning.interfaces import KINDS, DerivativeRule
from morphlightning.testing import check_component, checks, parametrize_with_checks

pytest_plugins = ["pytester"]


@dataclass(frozen=True)
class Doubling(DerivativeRule):
    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.where(chunk.size == 1, 2 * u, u)[chunk.owner]
        return share, share


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_checks_that_say_what_they_expect(kind: str) -> None:
    known = checks(kind)
    assert len(known) >= 4
    assert all(text.endswith(".") for text in known.values())


def test_all_failures_come_in_one_error() -> None:
    with registry.registered("derivatives", "doubling", Doubling), pytest.raises(AssertionError) as caught:
        check_component("derivatives", "doubling")
    message = str(caught.value)
    assert "derivatives 'doubling': 9 checks passed, 2 failed" in message
    assert "lone_candidate_gets_the_message\n    expected: In an active set of one" in message
    assert "seen: to cells: largest difference 3" in message
    assert "is_documented" in message
    assert "seen: no docstring" in message
    assert "first_takes_all (skipped: support is 'active')" in message


def test_known_failures_can_be_skipped_with_a_reason() -> None:
    skip = {"lone_candidate_gets_the_message": "it doubles", "is_documented": "it is not"}
    with registry.registered("derivatives", "doubling", Doubling):
        report = check_component("derivatives", "doubling", skip=skip)
    assert report.skipped.items() >= skip.items()
    assert not set(skip) & set(report.passed)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"skip names \['no_such_check'\], which are no checks of derivatives"):
        check_component("derivatives", "first", skip={"no_such_check": ""})
    with pytest.raises(ConfigError, match="no kind of component 'rules'"):
        checks("rules")
    with pytest.raises(PluginNotFoundError):
        check_component("derivatives", "no_such_rule")
    with pytest.raises(PluginContractError):
        check_component("derivatives", nn.ReLU())


def test_objects_are_checked_too() -> None:
    report = check_component("derivatives", registry.get("derivatives", "uniform")(0.5))
    assert report.skipped["is_saved_by_name"].startswith("given as an object")
    assert "is_positively_homogeneous" in report.passed


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    check_component("initializers", "uniform")
    assert torch.equal(torch.get_rng_state(), before)


@parametrize_with_checks("derivatives", ["uniform", {"name": "uniform", "eps": 1.0}])
def test_one_test_of_each_check(check: Callable[[], None]) -> None:
    check()


def test_parametrized_checks_carry_names_and_skips() -> None:
    mark = parametrize_with_checks("derivatives", ["first"], skip={"is_documented": "for once"}).mark
    cases = {case.id: case for case in mark.args[1]}
    assert set(cases) == {f"first-{name}" for name in checks("derivatives")}
    assert [m.name for m in cases["first-is_documented"].marks] == ["skip"]
    assert not cases["first-is_deterministic"].marks


def test_fixtures(morph_check: Any, morph_register: Any, morph_isolated: Any) -> None:
    assert morph_check("derivatives", "first").failures == []
    morph_register("derivatives", "doubling", Doubling)
    assert "doubling" in registry.names("derivatives")
    morph_isolated()
    assert {info.distribution for info in registry.survey("derivatives")} == {"morphlightning", "local"}


def test_a_fixture_ends_with_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from morphlightning import registry
        from morphlightning.interfaces import DerivativeRule

        def test_one(morph_register):
            morph_register("derivatives", "again", registry.get("derivatives", "first"))
            assert "again" in registry.names("derivatives")

        def test_two():
            assert "again" not in registry.names("derivatives")
    """)
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-n0").assert_outcomes(passed=2)


def test_the_pytest_plugin_costs_a_foreign_test_run_next_to_nothing() -> None:
    code = (
        "import sys, morphlightning, pytest; before = set(sys.modules);"
        "import morphlightning.testing.pytest_plugin; print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["morphlightning.testing", "morphlightning.testing.pytest_plugin"]
