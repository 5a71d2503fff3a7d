"""A derivative rule and heuristics by name: parsed once, used by functional operators, layers and models alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Heuristic, Spec
from morphlightning.ops import policy
from morphlightning.ops.policy import Policy


@dataclass(frozen=True)
class Pipeline:
    """What happens to a message: in the backward pass (``policy``) and before the optimizer's step (``updates``)."""

    policy: Policy
    updates: tuple[Heuristic, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that the updates read."""
        return frozenset().union(*(heuristic.needs for heuristic in self.updates))

    @classmethod
    def parse(cls, derivative: Spec = "first", heuristic: Spec = "plain") -> Pipeline:
        """Build from names, mappings or objects.

        Args:
            derivative: A derivative rule.
            heuristic: One heuristic, a composition such as ``"best+count_normalized"``, or a sequence of them. Stages
                sort themselves; inside a stage the order is as written.

        Raises:
            ConfigError: Two message heuristics, or an order that contradicts what an update declares.
        """
        if isinstance(derivative, str) and isinstance(heuristic, str):
            classes = [registry.get("derivatives", derivative)]
            classes += [registry.get("heuristics", part) for part in split(heuristic)]
            return _parse_names(derivative, heuristic, tuple(classes))
        return cls._parse(derivative, heuristic)

    @classmethod
    def _parse(cls, derivative: Spec, heuristic: Spec) -> Pipeline:
        rule = registry.build("derivatives", derivative)
        named = [(_name(spec), registry.build("heuristics", spec)) for spec in split(heuristic)]
        messages = [(name, h) for name, h in named if h.stage == "message"]
        if len(messages) > 1:
            names = " and ".join(name for name, _ in messages)
            raise ConfigError(
                f"heuristic {heuristic!r}: {names} are both message heuristics and each replaces the message; keep one"
            )
        routes = tuple(h for _, h in named if h.stage == "route")
        updates = [(name, h) for name, h in named if h.stage == "update"]
        _check_order(updates)
        policy = Policy(rule, messages[0][1] if messages else None, routes)
        return cls(policy, tuple(h for name, h in updates if name.rpartition(":")[2] != "plain"))


def policy_of(derivative: Spec) -> Policy:
    """The policy of a derivative rule alone; for a compiler, which shall not trace the registry, a constant."""
    return policy.parse(_policy_key(derivative))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _policy_key(derivative: Spec) -> str:
    return Pipeline.parse(derivative).policy.key


@lru_cache(maxsize=256)
def _parse_names(derivative: str, heuristic: str, classes: tuple[Any, ...]) -> Pipeline:
    """Functional operators parse at every call; ``classes`` is in the key because a name can change hands."""
    return Pipeline._parse(derivative, heuristic)


def split(heuristic: Spec) -> list[Spec]:
    """The parts of a composition."""
    if isinstance(heuristic, str):
        return [part.strip() for part in heuristic.split("+")]
    if isinstance(heuristic, Sequence):
        return list(heuristic)
    return [heuristic]


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    return str(spec["name"]) if isinstance(spec, Mapping) else type(spec).__name__


def _check_order(updates: list[tuple[str, Heuristic]]) -> None:
    names = [name.rpartition(":")[2] for name, _ in updates]
    for position, (name, heuristic) in enumerate(updates):
        late = [other for other in names[position + 1 :] if other in heuristic.after]
        if late:
            raise ConfigError(f"heuristic order {'+'.join(names)}: {name} must come after {', '.join(late)}; swap them")
