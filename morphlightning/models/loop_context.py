"""What a manual-optimization loop sees of the model and the Trainer during one iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from morphlightning.errors import ConfigError

if TYPE_CHECKING:
    from morphlightning.models.training import PluginTraining


class LoopContext:
    """What a loop may use during one iteration of a :class:`PluginTraining`; see interfaces.StepContext."""

    def __init__(self, module: PluginTraining, inputs: Tensor, ends_pass: bool) -> None:
        self._module, self._inputs, self.ends_pass = module, inputs, ends_pass
        self.steps, self.logged_loss = 0, False

    def forward(self, input: Tensor) -> Tensor:
        """The network's output."""
        output: Tensor = self._module(input)
        return output

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Data loss plus regularizers, logged."""
        self.logged_loss = True
        return self._module.loss(output, target, self._inputs)

    def backward(self, loss: Tensor) -> None:
        """Backward through Lightning, so that gradients are reduced."""
        self._module.manual_backward(loss)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        reduced: Tensor = self._module.trainer.strategy.reduce(value, reduce_op="sum")
        return reduced

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One optimizer step, counted once."""
        self.steps += 1
        optimizer = self._module.optimizers()
        if not isinstance(optimizer, LightningOptimizer):
            raise ConfigError(f"a loop owns exactly one optimizer, this one gave {optimizer!r}")

        def cleared() -> Tensor:
            optimizer.zero_grad()
            return closure()

        result: Tensor = optimizer.step(closure=cleared)
        return result
