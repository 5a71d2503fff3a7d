"""Whether a backend may be called directly, or has to be reached through a registered operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter


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
