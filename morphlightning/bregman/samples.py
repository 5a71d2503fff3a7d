"""Where the auxiliary variables of a process's samples live between iterations."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from morphlightning.bregman.method import Samples
from morphlightning.errors import DataError

Storage = Literal["device", "cpu", "memmap"]
STORAGES: tuple[Storage, ...] = ("device", "cpu", "memmap")


class SampleStore:
    """Auxiliary variables by global sample index, for the samples i with i mod world_size = rank.

    Args:
        size: Samples over all processes.
        rank: Number of this process.
        world_size: Number of processes.
        storage: ``device``, where they come from; ``cpu``; or ``memmap``, files in a temporary folder, which are gone
            with the process.
    """

    def __init__(self, size: int, rank: int, world_size: int, storage: Storage = "device") -> None:
        self.rank, self.world_size = rank, world_size
        self.known = torch.zeros(len(range(rank, size, world_size)), dtype=torch.bool)
        self._storage = storage
        self._rows: Samples = {}
        self._folder: Path | None = None
        if storage == "memmap":
            self._folder = Path(tempfile.mkdtemp(prefix="auxiliaries-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def take(self, index: Tensor, device: torch.device) -> tuple[Samples, Tensor] | None:
        """The variables of these samples, in this order, and which of them are known; None if none is.

        All samples at once are handed out as they lie, not copied.
        """
        rows = self._positions(index)
        known = self.known[rows]
        if not known.any():
            return None
        if self._is_whole(rows):
            return {name: kept.to(device) for name, kept in self._rows.items()}, known
        return {name: kept[rows.to(kept.device)].to(device) for name, kept in self._rows.items()}, known

    def put(self, index: Tensor, samples: Samples) -> None:
        """Keep the variables of these samples."""
        rows = self._positions(index)
        whole = self._is_whole(rows)
        for name, values in samples.items():
            kept = self._rows.get(name)
            if kept is None or (whole and self._storage == "device"):
                kept = self._rows[name] = values if whole and self._storage == "device" else self._room(name, values)
            if values is not kept:
                kept[rows.to(kept.device)] = values.to(kept.device)
        self.known[rows] = True

    def state(self) -> Samples:
        """The known samples: their global indices, ascending, and their variables."""
        rows = self.known.nonzero().flatten()
        kept = {name: values[rows.to(values.device)] for name, values in self._rows.items()}
        return {"index": rows * self.world_size + self.rank, **kept}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Keep what ``state`` gave, here or elsewhere."""
        self.put(state["index"], {name: values.to(device) for name, values in state.items() if name != "index"})

    def _positions(self, index: Tensor) -> Tensor:
        index = index.cpu()
        if bool((index % self.world_size != self.rank).any()):
            raise DataError(
                f"a batch of process {self.rank} holds samples that other processes own (sample i belongs to process i "
                f"modulo {self.world_size}); take the loader from morphlightning.data.indexed"
            )
        return index // self.world_size

    def _is_whole(self, rows: Tensor) -> bool:
        return len(rows) == len(self.known) and bool((rows[1:] > rows[:-1]).all())

    def _room(self, name: str, like: Tensor) -> Tensor:
        shape = (len(self.known), *like.shape[1:])
        if self._folder is None:
            return like.new_zeros(shape, device=like.device if self._storage == "device" else "cpu")
        count = torch.Size(shape).numel()
        return torch.from_file(str(self._folder / name), shared=True, size=count, dtype=like.dtype).view(shape)


def select(states: Sequence[Mapping[str, Tensor]], rank: int, world_size: int) -> Samples:
    """Of the states of any number of processes, the samples that a process owns, by ascending index."""
    filled = [state for state in states if len(state["index"])]  # a process may have seen no sample yet
    if not filled:
        return {"index": torch.zeros(0, dtype=torch.long)}
    found = {name: torch.cat([state[name] for state in filled]) for name in filled[0]}
    mine = (found["index"] % world_size == rank).nonzero().flatten()
    mine = mine[found["index"][mine].argsort()]
    return {name: values[mine] for name, values in found.items()}
