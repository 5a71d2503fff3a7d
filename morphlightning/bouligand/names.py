"""Which module a forward pass is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


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
