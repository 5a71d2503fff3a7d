"""Lipschitz constants of modules, declared layer by layer and composed into a certificate.

A bound holds for the function in exact arithmetic, with the parameters as they are now; rounding of a forward pass in
float32 comes on top of it. Norms are taken over all numbers of a sample, so that layers with batch axes are bounded
sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from morphlightning.errors import NotCertifiable
from morphlightning.interfaces import LipschitzDeclared, LipschitzSpec

Measured = Literal["l2", "linf"]
M = TypeVar("M", bound=nn.Module)
Rule = Callable[[Any, Measured], LipschitzSpec]
_RULES: dict[type[nn.Module], Rule] = {}


def register(*kinds: type[nn.Module]) -> Callable[[Callable[[M, Measured], LipschitzSpec]], Any]:
    """Decorate a rule that bounds modules of these classes, and of subclasses that keep their ``forward``.

    The rule takes the module and the norm in which inputs are measured, ``"l2"`` or ``"linf"``. It may answer for
    another norm of the inputs: composition accepts ``"linf"`` after ``"l2"``, because the largest modulus is not above
    the Euclidean norm. It raises NotCertifiable where there is no bound. A later rule for a class replaces the earlier.
    """

    def decorate(rule: Callable[[M, Measured], LipschitzSpec]) -> Any:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return decorate


def pointwise(constant: float, why: str, exact: bool = True) -> LipschitzSpec:
    """The bound of a function of each number by itself: the same in all norms."""
    return LipschitzSpec(constant, "any", "any", exact, why)


def lipschitz_spec(module: nn.Module, norm: Measured = "l2") -> LipschitzSpec:
    """The Lipschitz constant of a module for inputs measured in a norm, composed where it is a Sequential.

    Raises:
        NotCertifiable: No constant can be proved; the message names the layer.
    """
    return certify(module, norm).spec


@dataclass(frozen=True)
class Certificate:
    """A proved Lipschitz constant, and where it comes from.

    Attributes:
        spec: The bound of the whole.
        layers: Names and bounds of the layers, in order of application.
    """

    spec: LipschitzSpec
    layers: tuple[tuple[str, LipschitzSpec], ...]

    @property
    def constant(self) -> float:
        """The bound of the whole."""
        return self.spec.constant

    def __str__(self) -> str:
        """A line for the whole and one for each layer."""
        spec = self.spec
        lines = [f"|f(x) - f(y)|_{spec.norm_out} <= {spec.constant:.6g} |x - y|_{spec.norm_in}"]
        width = max((len(name) for name, _ in self.layers), default=0)
        lines += [f"  {name:{width}}  {one.constant:.6g}  {one.why}" for name, one in self.layers]
        return "\n".join(lines)


def certify(module: nn.Module, norm: Measured = "l2") -> Certificate:
    """Compose the constants of the layers of a module.

    Args:
        module: A Sequential, nested ones too, or one layer: one that declares its constant (``lipschitz_spec``), or one
            of a registered class.
        norm: In which inputs are measured.

    Raises:
        NotCertifiable: A layer without a rule, in training mode where that matters, or one that needs the Euclidean
            norm behind one that bounds the largest modulus alone.
    """
    current, constant, found = norm, 1.0, []
    for name, layer in layers_of(module):
        try:
            spec = _one(layer, current)
            _check(spec, current)
        except NotCertifiable as error:
            raise NotCertifiable(f"{place(name, layer)}: {error}") from error
        current = current if spec.norm_out == "any" else spec.norm_out
        constant = _product(constant, spec.constant)
        found.append((name, spec))
    exact = len(found) == 1 and found[0][1].exact
    why = found[0][1].why if len(found) == 1 else "product of the constants of its layers"
    return Certificate(LipschitzSpec(constant, norm, current, exact, why), tuple(found))


def _check(spec: LipschitzSpec, current: Measured) -> None:
    if not 0 <= spec.constant < math.inf:
        raise NotCertifiable(f"its constant is {spec.constant}")
    if spec.norm_in == "l2" and current == "linf":
        raise NotCertifiable(
            "its bound is for inputs in l2, but the layers before it bound the largest modulus (linf) alone, and the "
            "Euclidean norm may be larger"
        )


def _product(a: float, b: float) -> float:
    """Not below the product, which floating-point numbers may round down."""
    product = a * b
    return product if a in (0.0, 1.0) or b in (0.0, 1.0) else math.nextafter(product, math.inf)


def layers_of(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of a module in order of application: those of a Sequential, nested ones too, or itself.

    Raises:
        NotCertifiable: A Sequential or a layer has hooks, or a forward of its own, which no rule knows of.
    """
    _refuse_hooks(module, name)
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():  # named_children leaves out a layer that comes again
            if child is not None:
                yield from layers_of(child, f"{name}.{key}" if name else key)
    else:
        yield name, module


def kinds_of(module: nn.Module) -> Iterator[type]:
    """Classes of a module, the most special one first, down to the one that defines its ``forward``."""
    for kind in type(module).__mro__:
        yield kind
        if "forward" in vars(kind):  # what classes above say is about another forward
            return


def same_forward(module: nn.Module, kind: type) -> bool:
    """Whether a rule for a class is about what the module computes."""
    return type(module).forward is getattr(kind, "forward", None)


def place(name: str, layer: nn.Module) -> str:
    """A layer in words, for messages."""
    return f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__


def _one(module: nn.Module, norm: Measured) -> LipschitzSpec:
    for kind in kinds_of(module):
        rule = _RULES.get(kind)
        if rule is not None and same_forward(module, kind):
            return rule(module, norm)
        if "lipschitz_spec" in vars(kind) and isinstance(module, LipschitzDeclared):
            return module.lipschitz_spec()
    raise NotCertifiable(
        "nothing is known about its forward; give its class a method lipschitz_spec, or a rule with "
        "morphlightning.lipschitz.register"
    )


def _refuse_hooks(module: nn.Module, name: str) -> None:
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise NotCertifiable(
            f"{place(name, module)}: it has forward hooks or a forward of its own, which may change what it computes"
        )
