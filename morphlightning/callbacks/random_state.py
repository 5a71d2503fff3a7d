"""Random numbers go on where a checkpoint was written."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

KEY = "random_state"


class RandomState(Callback):
    """Saves the random states of all processes in checkpoints and restores them on resume.

    Torch (CPU, and the device in use), numpy's and Python's global generators; with them a model with dropout resumes
    bit for bit. They are restored at the start of training, after Lightning has made the loaders' iterators. A loader
    that draws from torch's global generator (``DataLoader(shuffle=True)`` without ``generator=``) breaks this:
    give it a generator of its own, as our data modules do. With another number of processes than in the checkpoint the
    states are left alone, with a message.

    The states are tensors and plain numbers under the checkpoint's key ``random_state``, one entry a process, so
    ``weights_only=True`` loads them.

    Cost: about 15 kB per process and checkpoint, gathered when it is written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: list[dict[str, Any]] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of all processes."""
        checkpoint[KEY] = gather_states(trainer, capture(trainer.strategy.root_device))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the states for the start of training."""
        self._loaded = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this process's state, once."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        if len(loaded) != trainer.world_size:
            rank_zero_info(
                f"The checkpoint holds random states of {len(loaded)} processes, this run has {trainer.world_size}: "
                "they are not restored, and random numbers start anew."
            )
            return
        restore(loaded[trainer.global_rank], trainer.strategy.root_device)


def capture(device: torch.device) -> dict[str, Any]:
    """The states of the global generators as tensors and plain numbers."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss_next],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to what ``capture`` returned."""
    torch.set_rng_state(state["torch"].cpu())
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def gather_states(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """States of all processes, by rank; of this one alone where it may be alone in saving."""
    if trainer.world_size == 1 or saves_alone(trainer):
        return [state]
    states: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(states, state)
    return states


def saves_alone(trainer: Trainer) -> bool:
    """Whether the others may not be saving: after an exception, SIGTERM aside. A collective would wait for ever."""
    return bool(trainer.interrupted and not trainer.received_sigterm)
