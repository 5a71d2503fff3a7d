"""NaN and inf stop a run before they reach the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from morphlightning.errors import DataError, MorphLightningError, NonFiniteError


class FiniteGuard(Callback):
    """Stops a run at the first NaN or inf in a training batch, in the loss or in a gradient, before the weights change.

    One process: the error comes where the value is met - before the forward pass, before backward, before the step.

    Several processes: the one that meets it goes on until backward and makes its gradients NaN; the reduction of the
    gradients carries that to the others, and all of them raise before the optimizer's step. Nobody is left waiting,
    and no further collective is needed. (Running statistics of normalisation layers have then seen the batch.) Where no
    gradients are reduced - fp16 loss scaling, loops without backward - the process raises alone, and the others
    end with a lost connection.

    Under fp16 loss scaling infinite gradients are legitimate: the scaler skips the step, and gradients are not checked.

    Cost: one pass over the batch and one over the gradients, three synchronisations with the device a step.

    Args:
        check_batch: Look at the batches; False where infinite inputs are meant.

    Raises:
        DataError: From the hooks, naming the batch, the positions in it and, where the loader has
            ``sample_indices(batch_idx)``, the samples.
        NonFiniteError: From the hooks, naming the step, and the first parameter whose gradient is not finite.
    """

    def __init__(self, check_batch: bool = True) -> None:
        super().__init__()
        self.check_batch = check_batch
        self._fault: MorphLightningError | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier fit left."""
        self._fault = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look for NaN and inf in the floating-point tensors of the batch."""
        if not self.check_batch:
            return
        for where, tensor in _float_tensors(batch):
            if not tensor.isfinite().all():
                self._stop(trainer, _data_error(trainer, where, tensor, batch_idx))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss; where other processes wait, send NaN backward to tell them."""
        bad = loss.detach().isnan() if _may_overflow(trainer, loss) else ~loss.detach().isfinite()
        if bad.any():
            self._stop(trainer, NonFiniteError(f"The loss is {loss.detach().tolist()} {_when(trainer)}"))
        if self._fault is not None and loss.requires_grad:
            loss.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, which are reduced over the processes by now."""
        self._raise_fault()
        if _scaler(trainer) is not None:
            return
        gradients = [_values(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if gradients and not get_total_norm(gradients, norm_type=float("inf")).isfinite():
            raise _gradient_error(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Raise what a manual loop without an optimizer's step has left."""
        if not pl_module.automatic_optimization:
            self._raise_fault()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say with an error of somebody else what was met before it on this process."""
        if self._fault is not None and exception.__cause__ is None:
            exception.__cause__ = self._fault

    def _stop(self, trainer: Trainer, error: MorphLightningError) -> None:
        """Raise now, or before the step where other processes would wait for this one in backward."""
        if trainer.world_size == 1:
            raise error
        self._fault = self._fault or error

    def _raise_fault(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault


def _float_tensors(batch: Any, where: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Floating-point and complex tensors of a nested batch with the expressions that reach them."""
    if isinstance(batch, Tensor):
        if batch.is_floating_point() or batch.is_complex():
            yield where, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _float_tensors(value, f"{where}[{key!r}]")
    elif isinstance(batch, tuple | list):
        for position, value in enumerate(batch):
            yield from _float_tensors(value, f"{where}[{position}]")


def _data_error(trainer: Trainer, where: str, tensor: Tensor, batch_idx: int) -> DataError:
    bad = ~tensor.isfinite()
    positions = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if bad.ndim else [0]
    kind = "NaN" if tensor.isnan().any() else "inf"
    indices = getattr(trainer.train_dataloader, "sample_indices", None)
    samples = ""
    if indices is not None:
        drawn = list(indices(batch_idx))
        samples = f" (samples {[int(drawn[position]) for position in positions]} of the dataset)"
    return DataError(
        f"Training batch {batch_idx} of epoch {trainer.current_epoch} on rank {trainer.global_rank}: {where} of shape "
        f"{tuple(tensor.shape)} holds {kind} at positions {positions}{samples}; finite values were expected. Repair or "
        f"leave out these samples; FiniteGuard(check_batch=False) lets infinite inputs pass. {_state(trainer)}"
    )


def _gradient_error(trainer: Trainer, module: LightningModule) -> NonFiniteError:
    bad = [n for n, p in module.named_parameters() if p.grad is not None and not _values(p.grad).isfinite().all()]
    others = " Another process may have met the cause; see its message." if trainer.world_size > 1 else ""
    return NonFiniteError(
        f"The gradient of {bad[0]!r} (and of {len(bad) - 1} more parameters) is not finite {_when(trainer)}{others}"
    )


def _when(trainer: Trainer) -> str:
    return (
        f"in epoch {trainer.current_epoch}, step {trainer.global_step}, on rank {trainer.global_rank}; a finite value "
        "was expected. Lower the learning rate, clip gradients (Trainer(gradient_clip_val=...)), or find the operation "
        f"with Trainer(detect_anomaly=True). {_state(trainer)}"
    )


def _state(trainer: Trainer) -> str:
    callback = trainer.checkpoint_callback
    last = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    return f"The weights are those before this step; last checkpoint: {last or 'none yet'}."


def _scaler(trainer: Trainer) -> Any:
    """The loss scaler of fp16 training, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _may_overflow(trainer: Trainer, loss: Tensor) -> bool:
    """Whether inf may come of scaling an fp16 loss, which the scaler itself takes care of."""
    return _scaler(trainer) is not None and loss.dtype == torch.float16


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
