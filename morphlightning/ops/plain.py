"""Whether a backend may be called directly, or has to be reached through a registered operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter


def differentiated(*tensors: object) -> bool:
    """Whether autograd follows one of these: also from outside of a vmap, whose tensors do not say so themselves."""
    return torch.is_grad_enabled() and any(isinstance(one, Tensor) and _followed(one) for one in tensors)


def _followed(tensor: Tensor) -> bool:
    if tensor.requires_grad or torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return tensor.requires_grad
    functorch = torch._C._functorch
    wrapped = functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped and _followed(functorch.get_unwrapped(tensor))


def plain(*tensors: Tensor) -> bool:
    """Whether nothing but autograd looks on: then a backend is called directly, which saves what an operator costs.

    Compilers, function transforms, dispatch modes and tensor subclasses need the registered operator.
    """
    return (
        not torch.compiler.is_compiling()
        and all(type(t) in (Tensor, Parameter) for t in tensors)
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )
