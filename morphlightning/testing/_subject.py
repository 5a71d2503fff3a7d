"""What a check is given, and what checks of several kinds share."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from morphlightning import registry
from morphlightning.interfaces import Spec
from morphlightning.registry import summary


class Skipped(Exception):
    """Raised by a check that says nothing about a component, with the reason."""


@dataclass(frozen=True)
class Subject:
    """The component under test; each check builds its own."""

    kind: str
    spec: Spec
    module: Any = None

    def build(self, **context: Any) -> Any:
        """A new component."""
        spec = self.spec if isinstance(self.spec, str | Mapping) else copy.deepcopy(self.spec)
        return registry.build(self.kind, spec, **context)

    def factory(self) -> Any:
        """The class or function behind it."""
        if isinstance(self.spec, str | Mapping):
            name = self.spec if isinstance(self.spec, str) else self.spec["name"]
            return registry.get(self.kind, name)
        return type(self.spec)


def is_documented(subject: Subject) -> None:
    """The docstring's first line says what the component does, and ends with a full stop."""
    factory = subject.factory()
    first = summary(factory)
    assert first, "no docstring"
    assert first.endswith("."), f"first line {first!r}"


def is_a_plain_value(subject: Subject) -> None:
    """Equal parameters make equal, equally hashed objects; pickling gives an equal one back."""
    one, other = subject.build(), subject.build()
    assert one == other, f"{one!r} != {other!r}"
    assert hash(one) == hash(other), "two hashes of equal objects differ"
    copied = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes
    assert copied == one, f"pickled {one!r}, got {copied!r}"


def is_saved_by_name(subject: Subject) -> None:
    """Its configuration is plain and builds an equal component."""
    if not isinstance(subject.spec, str | Mapping):
        raise Skipped("given as an object; give its name to check how it is saved")
    one = subject.build()
    again = registry.build(subject.kind, registry.config(subject.kind, one))
    assert type(again) is type(one), f"{type(one).__name__} came back as {type(again).__name__}"
    if "__eq__" in vars(type(one)):
        assert again == one, f"{one!r} came back as {again!r}"


def require_equal(seen: Tensor, expected: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Fail with the largest difference where two tensors are not equal (NaN equals NaN)."""
    assert seen.shape == expected.shape, f"{what}: shape {tuple(seen.shape)}, expected {tuple(expected.shape)}"
    seen, expected = seen.double(), expected.double()
    same = (seen == expected) | (seen.isnan() & expected.isnan())
    off = torch.where(same, 0, (seen - expected).abs())
    limit = tolerance * (1 + expected.abs().nan_to_num(0, 0, 0))
    assert bool((off <= limit).all()), f"{what}: largest difference {off.max().item():.3g}"
