"""Small derivatives of outputs by inputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphlightning.errors import DtypeError, NotSupportedError, TrainingWarning
from morphlightning.interfaces import Regularizer, RegularizerContext

_DIFFERENTIABLE: WeakSet[nn.Module] = WeakSet()
"""Modules whose derivatives were found to have derivatives."""


@dataclass(frozen=True)
class JacobianNorm(Regularizer):
    r"""Weight times the mean over samples of :math:`\|J\|_F^2`, J the derivative of a sample's outputs by its inputs.

    Estimated without bias by ``projections`` random directions v on the unit sphere of the C outputs,

    .. math:: \|J\|_F^2 = C\, \mathrm{E}_v \|v^T J\|^2,

    each of which takes a backward pass that is differentiated again. The forward pass is made once more for it, in the
    mode and with the buffers of the training step, which it leaves as they were; random layers draw anew, and
    normalizations by batch statistics mix samples, so that J then is of the whole batch.

    On networks of max-plus layers alone it is of no use: each output follows one input, so that :math:`\|J\|_F^2` is
    the number of outputs almost everywhere, whatever the weights are, and its gradient is 0. ``bind`` warns there.
    Max-plus layers among others are passed, without a gradient for their weights.

    Args:
        weight: Factor of the term, >= 0.
        projections: Random directions a step.

    Raises:
        NotSupportedError: At the first step, where the network cannot be differentiated twice.
        DtypeError: Inputs that are not floating-point.

    Source: the estimator is that of Hoffman, Roberts and Yaida, "Robust learning with Jacobian regularization", arXiv
    1908.02729. What it is on max-plus networks is derived in docs/guarantees.md.
    """

    weight: float = 0.01
    projections: int = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, got {self.weight}")
        if self.projections < 1:
            raise ValueError(f"projections must be >= 1, got {self.projections}")

    def bind(self, module: nn.Module) -> None:
        """Warn where the term says nothing about the weights."""
        from morphlightning.layers import sites

        morph = {id(site.weight) for _, site in sites(module)}
        others = [p for p in module.parameters() if p.requires_grad and p.ndim > 1 and id(p) not in morph]
        if morph and not others:
            warnings.warn(
                "jacobian: all weight matrices of this network are max-plus, where each output follows one input: "
                "|J|_F^2 is the number of outputs almost everywhere (of soft layers, in the limit of large beta), "
                "whatever the weights, and the term teaches them nothing; for robustness train the margin instead, "
                "with loss={'name': 'margin_hinge', 'eps': ...}",
                TrainingWarning,
                stacklevel=2,
            )

    def term(self, module: nn.Module, context: RegularizerContext) -> Tensor:
        """The weighted estimate, at least in float32."""
        if not context.input.is_floating_point():
            raise DtypeError(f"jacobian: inputs are {context.input.dtype}, expected a floating-point tensor")
        x = context.input.detach().requires_grad_()
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        output = functional_call(module, buffers, (x,)).flatten(1)
        total = torch.zeros((), dtype=torch.promote_types(output.dtype, torch.float32), device=output.device)
        for _ in range(self.projections):
            v = nn.functional.normalize(torch.randn_like(output), dim=1)
            (pulled,) = torch.autograd.grad(output, x, v, create_graph=True)
            total = total + pulled.to(total.dtype).square().sum()
        estimate: Tensor = output.shape[1] * total / (self.projections * len(x))
        if module not in _DIFFERENTIABLE:
            _check_twice(estimate)
            _DIFFERENTIABLE.add(module)
        return self.weight * estimate


def _check_twice(estimate: Tensor) -> None:
    """Raise NotSupportedError where the backward pass of the estimate would fail."""
    if not estimate.requires_grad:
        return
    try:
        torch.autograd.grad(estimate, _leaves(estimate), retain_graph=True, allow_unused=True)
    except NotSupportedError as error:
        raise NotSupportedError(f"jacobian: {error}") from error
    except RuntimeError as error:
        raise NotSupportedError(
            f"jacobian: a layer of this network cannot be differentiated twice, which the term needs: {error}; replace "
            "the layer, or leave the regularizer out"
        ) from error


def _leaves(y: Tensor) -> list[Tensor]:
    """The tensors that a backward pass of y would end at; also those that torch puts behind nodes that raise."""
    waiting, seen, leaves = [y.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves
