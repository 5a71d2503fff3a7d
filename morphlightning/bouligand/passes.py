"""Forward passes that leave no trace, and say which module they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves


@contextmanager
def undisturbed(tensors: Any) -> Iterator[None]:
    """Uncompiled, without a gradient, and with random numbers that nobody misses afterwards.

    Args:
        tensors: Any tree of tensors that says which devices compute.
    """
    devices = {t.device for t in tree_leaves(tensors) if isinstance(t, Tensor) and t.is_cuda}
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(list(devices)),
        torch.compiler.set_stance("force_eager"),  # compiled code asks no mode
        sdpa_kernel(SDPBackend.MATH),  # the only attention that has derivatives along directions
    ):
        yield


@contextmanager
def entered(module: nn.Module | None) -> Iterator[list[tuple[str, str]]]:
    """Keep, while modules below ``module`` run, the stack of (name, type) of those that were entered.

    After an error it still tells where that happened. The hooks that do it are gone afterwards.
    """
    stack: list[tuple[str, str]] = []
    with ExitStack() as hooks:
        for name, child in module.named_modules() if module is not None else ():
            entry = name, type(child).__name__

            def enter(_: nn.Module, __: Any, entry: tuple[str, str] = entry) -> None:
                stack.append(entry)

            def leave(*_: Any, entry: tuple[str, str] = entry) -> None:
                while stack.pop() != entry:  # above lie modules whose error was caught
                    pass

            hooks.callback(child.register_forward_pre_hook(enter, prepend=True).remove)
            hooks.callback(child.register_forward_hook(leave).remove)
        yield stack
