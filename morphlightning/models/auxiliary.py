"""Where checkpoints keep the state that belongs to samples: in themselves, in a file of each process, or nowhere."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from torch import Tensor

from morphlightning.callbacks.random_state import saves_alone
from morphlightning.checkpoint_io import AUXILIARIES, SHARDS, SafeCheckpointIO, shard_folders
from morphlightning.errors import CheckpointError, ConfigError
from morphlightning.interfaces import Loop

State = Mapping[str, Tensor]


def save(trainer: L.Trainer, loop: Loop) -> Any:
    """What a checkpoint holds of the loop's auxiliary state; to be called on every process.

    Nothing where one of several processes saves alone, after an error: it must not wait for the others.
    """
    if loop.aux_policy == "none" or (trainer.world_size > 1 and saves_alone(trainer)):
        return []
    if loop.aux_policy == "shards":
        return _write_shard(trainer, loop.aux_state())
    return [loop.aux_state()] if trainer.world_size == 1 else _gather(trainer, loop.aux_state())


def load(trainer: L.Trainer, loop: Loop, saved: Any) -> None:
    """Give a loop what ``save`` returned, for this process of perhaps another number of them.

    Raises:
        ConfigError: The number of processes has changed, and the loop cannot regroup its state.
        CheckpointError: A file of a process is missing or damaged.
    """
    if not saved or (isinstance(saved, list) and not any(saved)):
        return
    rank, world = trainer.global_rank, trainer.world_size
    count = saved["processes"] if isinstance(saved, dict) else len(saved)
    if count == world:
        loop.load_aux_state(_state_of(trainer, saved, rank))
        return
    states = [_state_of(trainer, saved, number) for number in range(count)]
    mine = loop.regroup_aux_states(states, rank, world)
    if mine is None:
        raise ConfigError(
            f"the checkpoint holds the state of {type(loop).__name__} for {count} processes, this run has {world}; "
            "resume with as many processes as before"
        )
    loop.load_aux_state(mine)


def _gather(trainer: L.Trainer, state: State) -> Sequence[State | None]:
    """The states of all processes on process 0, which writes the checkpoint; nothing on the others."""
    states: list[Any] = [None] * trainer.world_size
    dist.gather_object(dict(state), states if trainer.is_global_zero else None)
    return states


def _write_shard(trainer: L.Trainer, state: State) -> dict[str, Any]:
    """Write this process's file, before the checkpoint that names it is written."""
    root = Path(trainer.log_dir or trainer.default_root_dir)
    token = trainer.strategy.broadcast(secrets.token_hex(4))
    folder = (root / AUXILIARIES / f"step={trainer.global_step}-{token}").resolve()
    SafeCheckpointIO().save_checkpoint(dict(state), _shard(folder, trainer.global_rank))
    trainer.strategy.barrier()
    return {SHARDS: str(folder), "processes": trainer.world_size}


def _shard(folder: Path, rank: int) -> Path:
    return folder / f"rank={rank}.ckpt"


def _state_of(trainer: L.Trainer, saved: Any, rank: int) -> State:
    if not isinstance(saved, dict):
        state: State = saved[rank]
        return state
    places = shard_folders(str(trainer.ckpt_path), saved[SHARDS])
    folder = next((place for place in places if _shard(place, rank).exists()), None)
    if folder is None:
        raise CheckpointError(
            f"the auxiliary variables of process {rank} are not there: looked for {_shard(places[-1], rank).name} in "
            f"{', '.join(map(str, places))}. Put the folder {places[-1].name} back, in a folder {AUXILIARIES} beside "
            "the checkpoint"
        )
    return SafeCheckpointIO().load_checkpoint(_shard(folder, rank))
