"""With which changes of their inputs modules commute exactly: declared layer by layer, as Lipschitz constants are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import nn

from morphlightning.interfaces import EquivarianceDeclared, Equivariances

Change = Literal["shift", "contrast", "brightness", "gain", "sup", "inf"]
M = TypeVar("M", bound=nn.Module)
Rule = Callable[[Any], Equivariances]
_RULES: dict[type[nn.Module], Rule] = {}


def register_equivariances(*kinds: type[nn.Module]) -> Callable[[Callable[[M], Equivariances]], Any]:
    """Decorate a rule that says with what modules of these classes commute.

    It holds for subclasses that keep their ``forward``. A module can also say so itself, by a method ``equivariances``
    (:class:`morphlightning.interfaces.EquivarianceDeclared`). A later rule for a class replaces the earlier.
    """

    def decorate(rule: Callable[[M], Equivariances]) -> Any:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return decorate


def claims(
    *bitwise: Change,
    rounded: tuple[Change, ...] = (),
    reach: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] = 1,
) -> Equivariances:
    """Equivariances of plain names."""
    return Equivariances(frozenset(bitwise), frozenset(rounded), reach, stride)


def equivariances(module: nn.Module) -> Equivariances | None:
    """What is claimed of a module as it is now; None where nothing is known about its forward.

    A Sequential commutes with what all of its layers commute with, but for shifts, which layers claim one by one: what
    an output near the border misses adds up.
    """
    if type(module).forward is nn.Sequential.forward:
        return _of_sequence([equivariances(child) for child in module.children()])
    for kind in type(module).__mro__:
        rule = _RULES.get(kind)
        if rule is not None and type(module).forward is getattr(kind, "forward", None):
            return rule(module)
        if "equivariances" in vars(kind) and isinstance(module, EquivarianceDeclared):
            return module.equivariances()
        if "forward" in vars(kind):  # what classes above say is about another forward
            break
    return None


def _of_sequence(parts: list[Equivariances | None]) -> Equivariances | None:
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts):
        return None
    bitwise = frozenset.intersection(*(part.bitwise for part in known))
    both = frozenset.intersection(*(part.bitwise | part.rounded for part in known))
    return Equivariances(bitwise - {"shift"}, both - bitwise - {"shift"})
