"""How far maps are from commuting with changes of their inputs, measured layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DtypeError, ShapeError
from morphlightning.guarantees.stability.claims import Change, equivariances
from morphlightning.interfaces import Equivariances

Network = Callable[[Tensor], Tensor]
AMOUNTS: dict[Change, float] = {"shift": 1, "contrast": 0.5, "brightness": 0.25, "gain": 1.5, "sup": 0, "inf": 0}
"""Pixels, the exponent, the constant, the factor."""
ULPS = 256
"""Beyond so many units in the last place of the largest number a defect is not due to rounding."""


MAXIMA = ("largest", "excess")
"""What of a defect is a maximum over samples; the rest are sums."""


class Defect(NamedTuple):
    r"""Sums over a batch of :math:`d = f(Tx) - T f(x)`, from which metrics make their numbers; all without axes.

    Attributes:
        largest: The largest modulus of d.
        total: Sum of the moduli.
        numbers: How many d has.
        squares: Sum of :math:`|d|^2`.
        spread: Sum over samples of :math:`|f(x) - f(x')|^2`, x' the sample before x (of the first one the last).
        excess: By how much ``largest`` is above 0, or above what rounding explains, where f claims to commute; -inf
            where it does not.
    """

    largest: Tensor
    total: Tensor
    numbers: Tensor
    squares: Tensor
    spread: Tensor
    excess: Tensor


def change(x: Tensor, kind: Change, amount: float, steps: int | tuple[int, ...] = 1) -> Tensor:
    r"""Change inputs or outputs, (batch, ...).

    ==============  ===============================================================================
    ``shift``       the axes of space (batch, channels, *space) by ``amount * steps`` pixels, circularly; where there
                    is but one axis after channels, or none, nothing
    ``contrast``    :math:`\mathrm{sign}(x) |x|^{1/2}`, an increasing function
    ``brightness``  x + ``amount``
    ``gain``        x times ``amount`` > 0
    ``sup``         the maximum of each sample and the one before it in the batch, ``inf`` the minimum
    ==============  ===============================================================================
    """
    if kind == "shift":
        axes = tuple(range(2, x.ndim)) if x.ndim >= 4 else ()
        return x.roll([int(amount) * step for step in _per_axis(steps, len(axes))], axes) if axes else x
    if kind == "contrast":
        return x.sign() * x.abs().sqrt()  # both round the same way in every lane of a vector unit
    if kind == "brightness":
        return x + amount
    if kind == "gain":
        return x * amount
    return (torch.maximum if kind == "sup" else torch.minimum)(x, x.roll(1, 0))


def _per_axis(size: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return size if isinstance(size, tuple) else (size,) * axes


def check_change(where: str, kind: str, amount: float | None) -> tuple[Change, float]:
    """The change and its amount, the default one for None.

    Raises:
        ConfigError: There is no such change, or no such amount of it.
    """
    if kind not in AMOUNTS:
        raise ConfigError(f"{where}: group must be one of {', '.join(get_args(Change))}, got {kind!r}")
    found: Change = kind
    if amount is None:
        return found, AMOUNTS[found]
    if found in ("contrast", "sup", "inf"):
        raise ConfigError(f"{where}: group {kind!r} takes no amount, got {amount}")
    if found == "shift" and (amount != int(amount) or not amount):
        raise ConfigError(f"{where}: a shift by whole pixels, not 0, is expected, got amount={amount}")
    if found == "gain" and not amount > 0:
        raise ConfigError(f"{where}: a gain > 0 is expected, got amount={amount}")
    return found, amount


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Without gradients and in evaluation mode; modules are in their own modes again afterwards."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def check_images(where: str, images: Tensor) -> None:
    """Raise an error unless these are images (batch, channels, height, width)."""
    if images.ndim != 4 or 0 in images.shape:
        raise ShapeError(
            f"{where}: images have shape {tuple(images.shape)}, expected (batch, channels, height, width), none empty"
        )
    if not images.is_floating_point():
        raise DtypeError(f"{where}: images have dtype {images.dtype}, expected a floating-point one")


def defects(network: Network, images: Tensor, kind: Change, amount: float, per_layer: bool = True) -> dict[str, Defect]:
    r"""Defects of a network and of each of its layers, on the inputs that they get from these images.

    A layer is measured by itself: on its input h, :math:`f(Th) - T f(h)`. So what an early layer does wrong is not
    counted again behind it. Layers are the modules of which something is claimed and, elsewhere, those without
    submodules; each call counts. The network as a whole is ``"network"``; where its outputs have no axes of space, a
    shift is to leave them as they are. Layers for which a change means nothing are left out. Shifts are measured from
    images to images; layers that claim to commute with them are measured inside, where no output sees what lies beyond
    the border, and left out where there is no such output.
    """
    found: dict[str, Defect] = {}
    with evaluating(network):
        calls: list[tuple[str, Network, Tensor]] = []
        if per_layer and isinstance(network, nn.Module):
            calls += _calls(network, images)
        calls.append(("network", network, images))
        for name, module, x in calls:
            defect = _defect(module, x, kind, amount, whole=module is network)
            if defect is not None:
                found[name] = _add(found[name], defect) if name in found else defect
    return found


def _calls(network: nn.Module, images: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Names, modules and inputs of the layers, in the order in which they are called."""
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
                calls.append((name, module, inputs[0].clone()))  # some layers write into their input

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in _layers(network, "")]
    try:
        network(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    sequence = type(module).forward is nn.Sequential.forward
    if name and not sequence and (equivariances(module) is not None or not any(module.children())):
        yield name, module
    else:
        for key, child in module.named_children():
            yield from _layers(child, f"{name}.{key}" if name else key)


def _defect(module: Network, x: Tensor, kind: Change, amount: float, whole: bool) -> Defect | None:
    claimed = (equivariances(module) if isinstance(module, nn.Module) else None) or Equivariances()
    known = kind in claimed.bitwise | claimed.rounded
    y = module(x.clone())
    if not isinstance(y, Tensor):
        return None
    steps: int | tuple[int, ...] = 1
    if kind == "shift" and not (whole and y.ndim < 4):
        if x.ndim < 4 or x.ndim != y.ndim or any(m > n for m, n in zip(y.shape[2:], x.shape[2:], strict=True)):
            return None
        ratios = tuple(round(n / max(m, 1)) for m, n in zip(y.shape[2:], x.shape[2:], strict=True))
        steps = claimed.stride if known else ratios
    z, expected = module(change(x, kind, amount, steps)), change(y, kind, amount)
    if kind == "shift" and known and claimed.reach is not None:
        inner = _inside(y, claimed.reach, steps, int(amount))
        z, expected = z[inner], expected[inner]
    if z.numel() == 0:
        return None
    off = torch.where(z == expected, 0.0, (z.double() - expected.double()).abs())  # infinities of one sign are equal
    off = off.nan_to_num(nan=torch.inf, posinf=torch.inf)
    spread = _finite(y.double() - y.roll(1, 0).double()).square().sum() * (z.numel() / y.numel())
    numbers = torch.tensor(off.numel(), device=off.device)
    largest = off.amax()
    excess = largest - _allowed(claimed, kind, x, y) if known else -torch.ones_like(largest) * torch.inf
    return Defect(largest, off.sum(), numbers, off.square().sum(), spread, excess)


def _inside(y: Tensor, reach: int | tuple[int, ...], stride: int | tuple[int, ...], amount: int) -> tuple[Any, ...]:
    """The outputs that see nothing from outside of the image, neither before nor after the shift."""
    axes = y.ndim - 2
    inner: list[Any] = [slice(None)] * 2
    for extent, outside, step in zip(y.shape[2:], _per_axis(reach, axes), _per_axis(stride, axes), strict=True):
        margin = -(-outside // step)
        first, last = margin + max(amount, 0), extent - margin + min(amount, 0)
        inner.append(slice(first, max(first, last)))
    return tuple(inner)


def _allowed(claimed: Equivariances, kind: Change, x: Tensor, y: Tensor) -> Tensor:
    """How large the defect of a claimed change may be."""
    if kind in claimed.bitwise:
        return y.new_zeros((), dtype=torch.float64)
    largest = torch.maximum(_finite(x).abs().amax(), _finite(y).abs().amax()).double()
    return ULPS * torch.finfo(y.dtype).eps * largest.clamp_min(1)


def _finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def _add(one: Defect, other: Defect) -> Defect:
    pairs = zip(Defect._fields, one, other, strict=True)
    return Defect(*(torch.maximum(a, b) if name in MAXIMA else a + b for name, a, b in pairs))
