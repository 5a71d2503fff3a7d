"""From a module to the proximal activation that it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from morphlightning.bregman.activations import (
    Clamp,
    Identity,
    LeakyReLU,
    ProximalActivation,
    ReLU,
    Softmax,
    SoftShrink,
)
from morphlightning.bregman.smooth import CELU, ELU, Sigmoid, Tanh
from morphlightning.bregman.splines import Spline
from morphlightning.errors import NotSupportedError
from morphlightning.interfaces import Proximal

_NOT_MONOTONE = "it is not monotone, so that no convex function has it as its proximal map"
_NOT_CONTINUOUS = "it is not continuous, so that no convex function has it as its proximal map"
_NO_FORM = (
    "it is proximal, but its h and h* have no closed form here: "
    "give an object of your own, a subclass of morphlightning.bregman.SmoothActivation"
)


def proximal(module: Any) -> ProximalActivation:
    """The proximal activation that a module computes, with its parameters as they are now.

    Args:
        module: A module of torch (Identity, ReLU, ReLU6, LeakyReLU, PReLU with one slope, Softshrink, Hardtanh,
            Hardsigmoid, Threshold, Tanh, Sigmoid, ELU, CELU, Softmax, Softmax2d), a module with the capability
            :class:`~morphlightning.interfaces.Proximal`, or a proximal activation, which is returned as it is.

    Raises:
        NotSupportedError: The module is not an activation, or not one that is a proximal map: those are monotone and
            1-Lipschitz. The message says what is wrong.
    """
    if isinstance(module, ProximalActivation):
        return module
    if isinstance(module, Proximal):
        found = module.proximal()
        if not isinstance(found, ProximalActivation):
            raise _refusal(module, f"its proximal() returned {type(found).__name__}, expected a ProximalActivation")
        return found
    known = next((kind for kind in type(module).__mro__ if kind in _KNOWN), None)
    if known is None:
        raise _refusal(module, "it is not an activation that is known to be proximal")
    if type(module).forward is not known.forward:
        raise _refusal(module, f"it overrides {known.__name__}.forward: let a method proximal() say what it is")
    found = _KNOWN[known]
    found = found(module) if callable(found) else found
    if isinstance(found, str):
        raise _refusal(module, found)
    return found


def _refusal(module: Any, reason: str) -> NotSupportedError:
    return NotSupportedError(
        f"proximal: {type(module).__name__} cannot be used here: {reason}. Activations that can: ReLU, LeakyReLU, "
        "Softshrink, Hardtanh, Tanh, Sigmoid, ELU, Softmax, Identity, monotone 1-Lipschitz splines"
    )


def _steep(constant: float) -> str:
    return f"its Lipschitz constant is {constant:.6g}, above 1; divided by that, it would be proximal"


def _leaky(slope: float) -> ProximalActivation | str:
    if slope < 0:
        return f"with the negative slope {slope:.6g} {_NOT_MONOTONE}"
    if slope > 1:
        return _steep(slope)
    return LeakyReLU(slope) if slope else ReLU()


def _prelu(module: nn.PReLU) -> ProximalActivation | str:
    if module.weight.numel() > 1:
        return f"it has {module.weight.numel()} slopes, expected one: build it with num_parameters=1"
    return _leaky(float(module.weight.detach()))


def _elu(module: nn.ELU) -> ProximalActivation | str:
    if module.alpha < 0:
        return f"with alpha={module.alpha:.6g} {_NOT_MONOTONE}"
    if module.alpha > 1:
        return _steep(module.alpha)
    return ELU(module.alpha) if module.alpha else ReLU()


def _celu(module: nn.CELU) -> ProximalActivation | str:
    return CELU(module.alpha) if module.alpha > 0 else f"its alpha is {module.alpha:.6g}, expected a positive one"


def _threshold(module: nn.Threshold) -> ProximalActivation | str:
    return Clamp(low=module.threshold, high=float("inf")) if module.value == module.threshold else _NOT_CONTINUOUS


def _softmax(module: nn.Softmax) -> ProximalActivation | str:
    if module.dim is None or module.dim == 0:
        return f"its dim is {module.dim}, expected an axis of a sample, such as -1"
    return Softmax(module.dim)


_KNOWN: dict[type[nn.Module], str | Callable[[Any], ProximalActivation | str]] = {
    nn.Identity: lambda module: Identity(),
    nn.ReLU: lambda module: ReLU(),
    nn.Hardtanh: lambda module: Clamp(module.min_val, module.max_val),  # and ReLU6, a subclass
    nn.LeakyReLU: lambda module: _leaky(module.negative_slope),
    nn.PReLU: _prelu,
    nn.Softshrink: lambda module: SoftShrink(module.lambd),
    nn.Hardsigmoid: lambda module: Spline(torch.tensor([0.0, 0.0, 1.0, 1.0]), limit=9.0),
    nn.Threshold: _threshold,
    nn.Tanh: lambda module: Tanh(),
    nn.Sigmoid: lambda module: Sigmoid(),
    nn.ELU: _elu,
    nn.CELU: _celu,
    nn.Softmax: _softmax,
    nn.Softmax2d: lambda module: Softmax(-3),
    nn.SELU: _steep(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717),
    nn.GELU: _NOT_MONOTONE,
    nn.SiLU: _NOT_MONOTONE,
    nn.Mish: _NOT_MONOTONE,
    nn.Hardswish: _NOT_MONOTONE,
    nn.Softmin: "it falls where it should rise: use Softmax of the negative",
    nn.Hardshrink: _NOT_CONTINUOUS,
    nn.Softplus: _NO_FORM,
    nn.LogSigmoid: _NO_FORM,
    nn.Tanhshrink: _NO_FORM,
    nn.Softsign: _NO_FORM,
    nn.RReLU: "it is random in training; use LeakyReLU",
}
