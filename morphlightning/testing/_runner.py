"""Runs the checks of a kind and reports all failures together."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec
from morphlightning.testing._subject import Skipped, Subject

Check = Callable[[Subject], None]


class Failure(NamedTuple):
    """A check that failed: its name, what it expects, and what was seen."""

    check: str
    expected: str
    seen: str

    def __str__(self) -> str:
        """One paragraph of the report."""
        return f"{self.check}\n    expected: {self.expected}\n    seen: {self.seen}"


@dataclass
class Report:
    """What became of each check.

    Attributes:
        kind: Kind of the component.
        spec: The component as it was specified.
        passed: Names of checks that passed.
        skipped: Names of checks that do not apply, with the reason.
        failures: The others.
    """

    kind: str
    spec: Spec
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        """The whole report."""
        head = f"{self.kind} {self.spec!r}: {len(self.passed)} checks passed, {len(self.failures)} failed"
        skipped = [f"{name} (skipped: {reason})" for name, reason in self.skipped.items()]
        return "\n  ".join([head, *map(str, self.failures), *skipped])


def checks(kind: str) -> dict[str, str]:
    """The checks of a kind: name and what each expects."""
    return {name: _expectation(check) for name, check in _checks(kind).items()}


def check_component(kind: str, spec: Spec, *, skip: Mapping[str, str] | None = None, module: Any = None) -> Report:
    """Run the conformance checks of a kind on a component.

    Args:
        kind: One of :data:`morphlightning.interfaces.KINDS`.
        spec: A name, a mapping or an object, as models take it.
        skip: Checks that the component is known to fail, by name, with the reason.
        module: For regularizers that mean nothing for the kit's own small networks: a network with 4 inputs and 3
            outputs for which they mean something.

    Raises:
        AssertionError: lists every check that failed, what it expects and what was seen.
        PluginError: the component cannot be built at all.
        ConfigError: ``skip`` names a check that there is not.

    Example:
        >>> print(check_component("derivatives", "bouligand").failures)
        []
    """
    registry.build(kind, spec)
    skip = dict(skip or {})
    known = _checks(kind)
    if unknown := sorted(set(skip) - set(known)):
        raise ConfigError(f"skip names {unknown}, which are no checks of {kind}; these are: {', '.join(known)}")
    report = Report(kind, spec, skipped=skip)
    for name, check in known.items():
        if name not in skip:
            _run(check, Subject(kind, spec, module), report)
    if report.failures:
        raise AssertionError(str(report))
    return report


def parametrize_with_checks(kind: str, specs: Iterable[Spec], *, skip: Mapping[str, str] | None = None) -> Any:
    """A pytest decorator that makes one test of each check and component.

    Example:
        >>> @parametrize_with_checks("derivatives", ["half", {"name": "half", "keep": 0.0}])
        ... def test_half_conforms(check):
        ...     check()
    """
    import pytest

    skip = dict(skip or {})
    rest = lambda name: {other: "another test" for other in _checks(kind) if other != name}  # noqa: E731
    cases = [
        pytest.param(
            lambda spec=spec, name=name: check_component(kind, spec, skip=rest(name)),  # type: ignore[no-untyped-call]
            id=f"{spec}-{name}",
            marks=[pytest.mark.skip(reason=skip[name])] if name in skip else [],
        )
        for spec in specs
        for name in _checks(kind)
    ]
    return pytest.mark.parametrize("check", cases)


def _checks(kind: str) -> dict[str, Check]:
    registry.names(kind)  # refuses a kind that there is not
    found: tuple[Check, ...] = importlib.import_module(f"morphlightning.testing._{kind}").CHECKS
    return {check.__name__: check for check in found}


def _run(check: Check, subject: Subject, report: Report) -> None:
    """Run one check from a fixed random state, and leave the caller's untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            check(subject)
        except Skipped as reason:
            report.skipped[check.__name__] = str(reason)
        except Exception as error:  # whatever a component raises is its failure
            seen = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            report.failures.append(Failure(check.__name__, _expectation(check), seen))
        else:
            report.passed.append(check.__name__)


def _expectation(check: Check) -> str:
    assert check.__doc__ is not None
    return check.__doc__.strip()
