"""A function along a ray: its values, one-sided slopes and radii, one pass at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

import morphlightning.bouligand.operators
import morphlightning.bouligand.pointwise
import morphlightning.bouligand.selection  # noqa: F401 - these three declare the rules
from morphlightning.bouligand.mode import Directional, Radius
from morphlightning.bouligand.passes import entered, undisturbed
from morphlightning.errors import ConfigError, ShapeError

Directions = Mapping[str, Tensor]


class Point(NamedTuple):
    """A function at one point of a ray.

    Attributes:
        value: f(p + t d).
        slope: One-sided derivative along d.
        radii: How far each function with kinks is affine from here, where it was asked for.
    """

    value: Any
    slope: Any
    radii: list[Radius]

    @property
    def radius(self) -> float:
        """The least of all radii."""
        return min((float(r.rows.amin()) for r in self.radii if r.rows.numel()), default=float("inf"))


class Ray:
    """t -> f(p + t d) for t >= 0.

    Random functions draw the same at every t, and leave torch's generators as they were.

    Args:
        where: What to call it in messages.
        function: f, of a list of tensors.
        start: The tensors p.
        direction: A direction for each, None for those that stay.
        module: Whose submodules messages and radii name.
    """

    def __init__(
        self,
        where: str,
        function: Callable[[list[Any]], Any],
        start: Sequence[Any],
        direction: Sequence[Tensor | None],
        module: nn.Module | None = None,
    ) -> None:
        self._where, self._function, self._module = where, function, module
        self._start = [p.detach() if isinstance(p, Tensor) else p for p in start]
        self._direction = [d if d is None else d.detach() for d in direction]

    def double(self) -> Ray:
        """The same ray in float64."""
        points = [p.double() if isinstance(p, Tensor) and p.is_floating_point() else p for p in self._start]
        directions = [d if d is None else d.double() for d in self._direction]
        return Ray(self._where, self._function, points, directions, self._module)

    def at(self, t: float = 0.0, *, eps: float = 0.0, radii: bool = False) -> Point:
        """One pass at p + t d."""
        with undisturbed(self._start), forward_ad.dual_level(), entered(self._module) as stack:
            moving = [_moved(p, d, t) for p, d in zip(self._start, self._direction, strict=True)]
            mode = Directional(self._where, stack, eps, radii)
            try:
                with mode:
                    output = self._function(moving)
            except NotImplementedError as error:
                why = str(error).splitlines()[0]
                raise mode.refusal(f"torch has no derivative along directions here ({why})") from error
            return Point(tree_map(_value, output), tree_map(_slope, output), mode.radii)


def _moved(p: Any, d: Tensor | None, t: float) -> Any:
    """A copy of p + t d with a copy of its direction: functions may work in place, on both."""
    if d is None:
        return p.clone() if isinstance(p, Tensor) else p
    return forward_ad.make_dual(torch.add(p, d, alpha=t), d.clone())


def _value(y: Any) -> Any:
    return forward_ad.unpack_dual(y).primal if isinstance(y, Tensor) else y


def _slope(y: Any) -> Any:
    if not isinstance(y, Tensor):
        return y
    slope = forward_ad.unpack_dual(y).tangent
    return torch.zeros_like(y) if slope is None else slope + 0  # a symbolic zero becomes a tensor


def check_direction(where: str, name: str, of: Any, direction: Tensor) -> Tensor:
    """The direction, in the dtype of what it moves.

    Raises:
        ShapeError: It has another shape.
        ConfigError: What it moves is no floating-point tensor.
    """
    if not isinstance(of, Tensor) or not of.is_floating_point():
        kind = of.dtype if isinstance(of, Tensor) else type(of).__name__
        raise ConfigError(f"{where}: {name} is {kind} and takes no direction; leave its direction out")
    if direction.shape != of.shape:
        raise ShapeError(
            f"{where}: the direction of {name} has shape {tuple(direction.shape)}, expected {tuple(of.shape)}"
        )
    return direction.to(of)


def module_ray(
    where: str,
    module: nn.Module,
    x: Any,
    h: Any,
    params: Directions | None,
    *,
    after: Callable[[Any], Any] = lambda y: y,
    dtype: torch.dtype | None = None,
) -> Ray:
    """``after(module(x))`` along directions of the inputs and of parameters; nothing of the module changes.

    Args:
        where: What to call it in messages.
        module: Any module.
        x: Its input, or a tuple of them.
        h: A direction of the input or None; a tuple of them for a tuple.
        params: Directions of parameters, by qualified name.
        after: What follows on the module.
        dtype: Computes in this dtype.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    along = h if isinstance(h, tuple) else (h,) if h is not None else (None,) * len(inputs)
    if len(along) != len(inputs):
        raise ConfigError(f"{where}: {len(along)} directions for {len(inputs)} inputs; give None for those that stay")
    moved = _by_one_name(where, module, params or {})
    state = {name: p.detach() for name, p in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def cast(t: Any) -> Any:
        return t.to(dtype) if dtype is not None and isinstance(t, Tensor) and t.is_floating_point() else t

    def call(moving: list[Any]) -> Any:
        own = {name: cast(t) for name, t in state.items()} | dict(zip(moved, moving[len(inputs) :], strict=True))
        copies = {name: cast(buffer).clone() for name, buffer in buffers.items()}
        return after(functional_call(module, own | copies, tuple(moving[: len(inputs)])))

    start = [*map(cast, inputs), *(cast(state[name]) for name in moved)]
    names = [*(f"input {i}" for i in range(len(inputs))), *moved]
    directions = [
        None if d is None else check_direction(where, name, p, d)
        for name, p, d in zip(names, start, [*along, *moved.values()], strict=True)
    ]
    return Ray(where, call, start, directions, module)


def _by_one_name(where: str, module: nn.Module, params: Directions) -> dict[str, Tensor]:
    """Directions by the first name of each parameter."""
    first = {id(p): name for name, p in module.named_parameters()}
    known = {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    unknown = sorted(set(params) - set(known))
    if unknown:
        has = ", ".join(known) or "none"
        raise ConfigError(f"{where}: {type(module).__name__} has no parameter {', '.join(unknown)}; it has {has}")
    return {known[name]: direction for name, direction in params.items()}
