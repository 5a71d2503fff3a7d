"""The forward pass of a training step once more, without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")


class Replay:
    """Runs a LightningModule on the batch of a training step, in the mode and with the random numbers of that step.

    Made before the step draws its random numbers. Parameters, buffers and random states are afterwards what they were.

    Attributes:
        input: First part of the batch.
        target: Its second part, None where there is none.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        parts = batch if isinstance(batch, list | tuple) else [batch]
        self.input, self.target = parts[0], parts[1] if len(parts) > 1 else None
        self._trainer, self._module = trainer, module
        self._devices = [module.device] if module.device.type == "cuda" else []
        self._random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    @torch.no_grad()
    def run(self, function: Callable[[LightningModule], T], parameters: Mapping[str, Tensor] | None = None) -> T:
        """``function`` of the module, with ``parameters`` in the place of its own where they are given."""
        tensors = {name: buffer.clone() for name, buffer in self._module.named_buffers()} | dict(parameters or {})
        with (
            torch.random.fork_rng(self._devices, device_type="cuda"),
            self._trainer.precision_plugin.forward_context(),
        ):
            torch.set_rng_state(self._random[0])
            for device, state in zip(self._devices, self._random[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            applied = _Applied(self._module, function)
            result: T = functional_call(applied, {f"module.{name}": tensor for name, tensor in tensors.items()}, ())
            return result


class _Applied(nn.Module, Generic[T]):
    """A function of a module as a module, so that its parameters can be exchanged while the function runs."""

    def __init__(self, module: LightningModule, function: Callable[[LightningModule], T]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> T:
        return self.function(self.module)
