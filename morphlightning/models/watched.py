"""Outputs of submodules during one training step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Watched:
    """Keeps the outputs of named submodules between :meth:`begin` and :meth:`end`; there are no hooks at other times.

    Attributes:
        activations: By name, the output of the last call that autograd recorded, with its graph.
    """

    def __init__(self) -> None:
        self.activations: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def begin(self, module: nn.Module, names: Iterable[str]) -> None:
        """Watch these submodules."""
        self.end()
        for name in dict.fromkeys(names):
            self._handles.append(module.get_submodule(name).register_forward_hook(self._keep(name)))

    def end(self) -> None:
        """Forget what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.activations.clear()

    def _keep(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if module.training and torch.is_grad_enabled():  # no other pass over the network counts
                self.activations[name] = output

        return keep
