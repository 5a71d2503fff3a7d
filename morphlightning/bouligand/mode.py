"""A directional pass: torch carries directions through what is smooth, this mode through what has kinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from morphlightning.bouligand import affine
from morphlightning.bouligand.kinks import Kink
from morphlightning.errors import NotSupportedError

Rule = Callable[..., Kink]

RULES: dict[Any, Rule] = {}
"""By function or by name: ``rule(mode, y, *arguments)`` gives what the direction meets; y is the output's value."""
REFUSED: set[str] = set()
"""Names of functions that jump or have kinks, and have no rule."""

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Declare the rule of functions, given by name or as they are."""

    def declare(given: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, given))
        return given

    return declare


def composition(*functions: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Declare the rule of functions by writing them in functions that have rules."""

    def declare(parts: Callable[..., Tensor]) -> Callable[..., Tensor]:
        rule(*functions)(lambda mode, y, *args, **kwargs: mode.through(parts, *args, **kwargs))
        return parts

    return declare


class Radius(NamedTuple):
    """How far the outputs of one function with kinks are exactly affine.

    Attributes:
        name: Qualified name of the innermost module.
        rows: The radius of each output.
    """

    name: str
    rows: Tensor


class Directional(TorchFunctionMode):
    """Intercepts every function that a moving tensor meets.

    Args:
        where: What to call the pass in messages.
        stack: Modules entered, as of :func:`morphlightning.bouligand.passes.entered`.
        eps: Candidates within eps of a maximum, and values within eps of a knot, count as tied.
        radii: Measure how far each kink is away, and refuse what is curved.
    """

    def __init__(self, where: str, stack: list[tuple[str, str]], eps: float, radii: bool) -> None:
        super().__init__()
        self.where, self.eps, self.radius = where, eps, radii
        self.radii: list[Radius] = []
        self._stack, self._running = stack, list[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not moves((args, kwargs)):
            return func(*args, **kwargs)
        if func not in RULES and func not in self._running and _unfolds(func):
            with self._inside(func), self:
                return _unfolded(func)(*args, **kwargs)
        name = affine.plain_name(func)
        given = RULES.get(func) or RULES.get(name)
        if given is not None:
            return self._by(given, func, args, kwargs)
        if name in REFUSED or kwargs.get("rounding_mode"):
            raise self.refusal(f"{name} jumps or has kinks, and there is no rule for it")
        return self._smooth(name, func, args, kwargs)

    def _by(self, given: Rule, func: Any, args: Any, kwargs: Any) -> Any:
        """Value by the function itself, direction by its rule."""
        if kwargs.get("out") is not None:
            raise self.refusal(f"{affine.plain_name(func)} with out= is not followed")
        in_place = affine.in_place(func)
        values = tree_map(_value, args)
        output = func(*((values[0].clone(), *values[1:]) if in_place else values), **tree_map(_value, kwargs))
        y, *rest = (output,) if isinstance(output, Tensor) else output
        with self._inside(func):
            kink = given(self, y, *args, **kwargs)
        if kink.radius is not None:
            rows = kink.radius.to(y.dtype).masked_fill(~y.isfinite(), math.inf)
            self.radii.append(Radius(self._stack[-1][0] if self._stack else "", rows))
        slope = torch.where(y.isfinite(), kink.slope.to(y.dtype), torch.where(y.isnan(), y, 0.0))
        dual = forward_ad.make_dual(y, slope)
        if in_place:
            return args[0].copy_(dual)
        if isinstance(output, Tensor):
            return dual
        return type(output)((dual, *rest))

    def _smooth(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """By torch's own derivative."""
        given = (args[0], *args[1]) if name == "einsum" else args
        positions = {i for i, argument in enumerate(given) if moves(argument)}
        names = {key for key, argument in kwargs.items() if moves(argument)}
        output = func(*args, **kwargs)
        if self.radius and moves(output) and not affine.is_affine(name, positions, names, given):
            raise self.refusal(f"{name} is curved along this direction: it has no exact radius")
        return output

    @contextmanager
    def _inside(self, func: Any) -> Iterator[None]:
        self._running.append(func)
        try:
            yield
        finally:
            self._running.pop()

    def through(self, parts: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Kink:
        """The direction through a composition, whose kinks measure themselves."""
        with self:
            y = parts(*args, **kwargs)
        return Kink(self.pair(y)[1], None)

    def pair(self, x: Any) -> tuple[Tensor, Tensor]:
        """Value and direction of an argument."""
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        value, direction = forward_ad.unpack_dual(x)
        if direction is None or direction._is_zerotensor():  # torch's symbolic zeros are no operands for kernels
            direction = torch.zeros_like(value)
        return value, direction

    def refusal(self, why: str) -> NotSupportedError:
        """The error that says where a direction cannot be followed, and why."""
        outermost = affine.plain_name(self._running[0]) if self._running else ""
        through = "" if why.startswith(outermost) else f", in {outermost}"
        inside = ", inside module {!r} ({})".format(*self._stack[-1]) if self._stack else ""
        return NotSupportedError(f"{self.where}: {why}{through}{inside}")


def moves(tree: Any) -> bool:
    """Whether a tensor in nested tuples, lists and dicts has a direction."""
    if isinstance(tree, Tensor):
        return forward_ad.unpack_dual(tree).tangent is not None
    if isinstance(tree, dict):
        return any(map(moves, tree.values()))
    return isinstance(tree, tuple | list) and any(map(moves, tree))


def _value(x: Any) -> Any:
    return forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x


def _unfolds(func: Any) -> bool:
    return isinstance(func, FunctionType) and any(check in func.__globals__ for check in _CHECKS)


def _unfolded(func: FunctionType) -> Callable[..., Any]:
    """A function of torch's in Python, which asks modes no more, so that the mode sees what it is made of."""
    unasked = func.__globals__ | dict.fromkeys(_CHECKS, lambda *_: False)
    body = FunctionType(func.__code__, unasked, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body
