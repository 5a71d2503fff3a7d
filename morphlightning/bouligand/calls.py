"""The max-plus operator calls of one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from morphlightning.bouligand.passes import entered, undisturbed
from morphlightning.ops.dispatch import maxplus, maxplus_with_provenance
from morphlightning.ops.geometry import Geometry


class OperatorCall(NamedTuple):
    """One call of a max-plus operator, or of its dual.

    Attributes:
        name: Qualified name of the innermost module that it happened in; empty for the module itself.
        x: Input (samples, ...), in the shape that ``where`` asks for.
        w: Weights (out, ...), -inf where missing.
        where: Which input meets which weight, and whether the operator is a dual one, min(x - w).
    """

    name: str
    x: Tensor
    w: Tensor
    where: Geometry


class _Recorder(TorchFunctionMode):
    def __init__(self, stack: list[tuple[str, str]]) -> None:
        super().__init__()
        self._stack, self.calls = stack, list[OperatorCall]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (maxplus, maxplus_with_provenance):
            x, w, where, *_ = args
            name = self._stack[-1][0] if self._stack else ""
            self.calls.append(OperatorCall(name, x.detach().clone(), w.detach().clone(), where))
        return func(*args, **(kwargs or {}))


def operator_calls(module: nn.Module, *inputs: Any) -> list[OperatorCall]:
    """All max-plus operator calls of ``module(*inputs)``, in order, with copies of what they were given.

    Windowed operators appear as they are computed: with the window reflected where the operator reflects it, and one
    group a channel where channels are added. Soft operators and reconstructions are no max-plus calls.

    Args:
        module: Any module; neither it nor torch's random generators change.
        *inputs: Arguments of its forward pass.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with undisturbed([inputs, buffers, *module.parameters()]), entered(module) as stack:
        recorder = _Recorder(stack)
        with recorder:
            functional_call(module, buffers, inputs)
    return recorder.calls
