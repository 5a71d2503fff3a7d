"""Processes that drift apart are found within a few steps."""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from morphlightning.errors import ConfigError, RankDisagreementError


class RankAgreement(Callback):
    """Stops a run whose processes hold different parameters, buffers or plugins.

    A gradient written by hand, ``loss.backward()`` in manual optimization or an in-place change computed from the local
    batch lets the copies of a model drift apart without any error. This callback compares checksums of all parameters
    and buffers, bit for bit, and raises the same error on every process. At setup it compares the installed plugins.

    Running statistics of normalisation layers are left out: each process has its own, and DDP spreads process 0's
    before each forward pass. Models that are not replicated (FSDP, one process) are not compared.

    Cost: nothing in one process. Else, at the steps that are checked, one pass over the parameters (16 bytes of scratch
    memory per element of the largest one) and one collective of 8 bytes per tensor.

    Args:
        every_n_steps: Check after each such number of training batches; 0 switches this off.
        first_n_steps: Check after each of the first training batches of a fit.
        ignore: Names or patterns (``"head.*"``) of parameters and buffers that may differ.

    Raises:
        RankDisagreementError: From the hooks, on every process, naming the first tensor that differs and the groups of
            processes that agree.
    """

    def __init__(self, every_n_steps: int = 100, first_n_steps: int = 10, ignore: Sequence[str] = ()) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("first_n_steps", first_n_steps)):
            if value < 0:
                raise ConfigError(f"RankAgreement: {name} must be 0 (off) or more, got {value}.")
        self.every_n_steps = every_n_steps
        self.first_n_steps = first_n_steps
        self.ignore = tuple(ignore)
        self._batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the installed plugins, and see to it that gloo groups are closed at the end."""
        if _processes() == 1:
            return
        close_gloo_at_exit()
        from morphlightning.registry import fingerprint

        digest = hashlib.sha256(fingerprint().encode()).digest()[:8]
        number = torch.tensor([int.from_bytes(digest, "big", signed=True)], device=trainer.strategy.root_device)
        groups = _groups(_all_gather(number)[:, 0])
        if len(groups) > 1:
            raise RankDisagreementError(
                f"The processes of this run have different plugins installed: {_describe(groups)}. They would resolve "
                "names differently. Run `morphlightning plugins` on each machine and install the same distributions."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting batches anew."""
        self._batches = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Compare the parameters at the first steps, then now and again."""
        self._batches += 1
        regular = self.every_n_steps > 0 and self._batches % self.every_n_steps == 0
        if self._batches <= self.first_n_steps or regular:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the parameters once more."""
        if self.every_n_steps > 0:
            self._check(trainer, pl_module)

    @torch.no_grad()
    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _processes() == 1 or not isinstance(trainer.strategy.model, DistributedDataParallel):
            return
        tensors = {name: tensor for name, tensor in _replicated(pl_module) if not self._ignored(name)}
        if not tensors:
            return
        sums = torch.stack([checksum(tensor) for tensor in tensors.values()])
        gathered = _all_gather(sums)  # (processes, tensors)
        differs = (gathered != gathered[0]).any(0)
        if not differs.any():
            return
        first = int(differs.nonzero()[0])
        name = list(tensors)[first]
        raise RankDisagreementError(
            f"After training batch {self._batches} of this fit the processes hold different values of {name!r} "
            f"({int(differs.sum())} of {len(tensors)} tensors differ): {_describe(_groups(gathered[:, first]))}. "
            "Something changed it on one process alone: a gradient written by hand, loss.backward() in place of "
            "self.manual_backward(loss), or an in-place change computed from the local batch. Let autograd make the "
            f"gradient, or reduce what the change is computed from; if it may differ, RankAgreement(ignore=[{name!r}])."
        )

    def _ignored(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.ignore)


def checksum(tensor: Tensor) -> Tensor:
    """Checksum sum_i (2 i + 1) b_i mod 2^64 of the bit patterns b_i of a tensor, a scalar int64.

    Integer sums do not depend on their order, so it is the same on every device and for any number of threads. The
    weights are odd, hence invertible: a change of any single element changes the sum.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    odd = torch.arange(bits.numel(), device=bits.device).mul_(2).add_(1)
    return odd.mul_(bits).sum()


def close_gloo_at_exit() -> None:
    """Close gloo process groups before the interpreter goes: left open, some runs abort at exit after a good fit."""
    atexit.unregister(_close_gloo)
    atexit.register(_close_gloo)


def _close_gloo() -> None:
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, stacked by rank; Lightning's own gather calls a deprecated function of torch."""
    gathered = [torch.empty_like(tensor) for _ in range(_processes())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


def _replicated(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that should be equal on all processes."""
    yield from module.named_parameters()
    for prefix, child in module.named_modules():
        if not isinstance(child, _NormBase):
            yield from child.named_buffers(prefix, recurse=False)


def _groups(values: Tensor) -> list[list[int]]:
    """Processes with equal values, as lists of ranks."""
    found: dict[int, list[int]] = {}
    for rank, value in enumerate(values.tolist()):
        found.setdefault(value, []).append(rank)
    return list(found.values())


def _describe(groups: list[list[int]]) -> str:
    return " against ".join(f"rank{'s' if len(g) > 1 else ''} {', '.join(map(str, g))}" for g in groups)
