"""A loader whose order depends on (seed, epoch) alone and that resumes inside an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

import lightning as L
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from morphlightning.errors import ConfigError, DataError

T = TypeVar("T")


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by (seed, epoch), shares out among processes, and can leave out the first samples of one pass.

    Lightning takes a DistributedSampler as it is and calls its ``set_epoch``. The k-th batches of all processes are
    together the k-th batch of a single process with the whole batch size.

    Where the dataset has a method ``at_epoch(epoch, index)``, it is asked for the key that stands for the index.

    Attributes:
        skip: Samples of this process that the next pass leaves out; 0 again once that pass has begun.
    """

    skip = 0

    def order(self) -> list[int]:
        """Indices of this process in the current epoch, all of them."""
        return list(super().__iter__())

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return iter(self.keys(self.order()[skip:], self.epoch))

    def keys(self, indices: Iterable[int], epoch: int) -> list[Any]:
        """What the dataset is asked for to get these samples as of an epoch."""
        at_epoch: Callable[[int, int], Any] | None = getattr(self.dataset, "at_epoch", None)
        return list(indices) if at_epoch is None else [at_epoch(epoch, index) for index in indices]


class ResumableLoader(DataLoader[T]):
    """A training DataLoader that goes on inside an epoch exactly where a checkpoint left it, at any ``num_workers``.

    Lightning saves and restores its state with the checkpoint. The batches that were already used are left out by their
    indices, none is read again. Iterating draws nothing from torch's global generator. Any map-style dataset will do;
    one that draws random numbers itself repeats them after a resumption only if it derives them from the epoch and the
    index, see :class:`EpochSampler`.

    Args:
        dataset: A map-style dataset with a length.
        batch_size: Samples of one batch of one process.
        shuffle: Shuffle anew in each epoch.
        seed: Seed of the order.
        num_replicas: Number of processes that share the data; by default those of the process group, or 1.
        rank: Number of this process among them.
        progress: Tells the number of the epoch and how many of its batches are worked through, where somebody keeps
            count (a Trainer does); otherwise ``set_epoch`` counts, and a batch as soon as it is handed out.
        sampler: None, or torch's SequentialSampler, which Lightning's ``overfit_batches`` puts in: no shuffling.
        **kwargs: What else DataLoader takes, such as ``num_workers``.

    Raises:
        ConfigError: The batch size is below 1, or the sampler is one that cannot be resumed.
        DataError: The dataset is empty.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        batch_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        progress: Callable[[], tuple[int, int]] | None = None,
        sampler: Sampler[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if batch_size < 1:
            raise ConfigError(f"{name}: batch_size={batch_size}, expected at least 1")
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise DataError(f"{name}: the dataset ({type(dataset).__name__}) is empty; nothing can be trained")
        if sampler is not None and not isinstance(sampler, SequentialSampler):
            raise ConfigError(
                f"{name} orders the samples itself and cannot take the sampler {type(sampler).__name__}; "
                "leave sampler out, or use torch's DataLoader"
            )
        self.seed, self.progress = seed, progress
        self._adopt_group = num_replicas is None
        self.num_replicas, self.rank = process_group() if num_replicas is None else (num_replicas, rank or 0)
        self._order = self._make_order(dataset, batch_size, shuffle and sampler is None)
        kwargs |= {"sampler": self._order, "generator": torch.Generator()}
        self._pending: dict[str, int] | None = None
        self._epoch = self._handed_out = 0
        super().__init__(dataset, batch_size, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: its body runs when the first batch is asked for, which is after Lightning's set_epoch. Workers
        # that started with iter() would prefetch the order of an epoch that is not the coming one.
        self._check_group()
        pending, self._pending = self._pending, None
        if self.progress is not None:
            self._order.set_epoch(self.progress()[0])
        self._epoch = self._order.epoch
        self._handed_out = self._batches_to_skip(pending)
        self.generator.manual_seed(self.seed + self._epoch)
        for batch in self._batches_from(self._handed_out):
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Say where training stands; plain integers, the same on every process."""
        if self._pending is not None:
            return dict(self._pending)
        epoch, batches = self._epoch, self._handed_out if self.progress is None else self.progress()[1]
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there in the next pass, if that is a pass of the same epoch; any other epoch is served whole."""
        self._pending = dict(state)
        self._order.set_epoch(state["epoch"])

    def sample_indices(self, batch_idx: int) -> list[int]:
        """Positions in ``dataset`` of the samples of a batch of this process, in the current epoch."""
        size = self.batch_size or 1
        return self._order.order()[batch_idx * size : (batch_idx + 1) * size]

    def _make_order(self, dataset: Dataset[T], batch_size: int, shuffle: bool) -> EpochSampler:
        return EpochSampler(dataset, self.num_replicas, self.rank, shuffle=shuffle, seed=self.seed)

    def _batches_from(self, first: int) -> Iterator[Any]:
        """The batches of the epoch that begins, without those before the first."""
        self._order.skip = first * (self.batch_size or 1)
        return super().__iter__()

    def _identity(self) -> dict[str, int]:
        """What has to be the same for the k-th batch to be the same."""
        size = len(self.dataset) if isinstance(self.dataset, Sized) else 0
        return {"global_batch_size": (self.batch_size or 1) * self.num_replicas, "samples": size, "seed": self.seed}

    def _batches_to_skip(self, pending: dict[str, int] | None) -> int:
        if pending is None or pending["epoch"] != self._order.epoch or pending["batches"] == 0:
            return 0
        mine = self._identity()
        if changed := [
            f"{key}: {pending.get(key)} then, {mine[key]} now" for key in mine if pending.get(key) != mine[key]
        ]:
            raise ConfigError(
                f"the checkpoint lies in the middle of epoch {pending['epoch']} and the training data are not those "
                f"it was made with ({'; '.join(changed)}); restore these settings (global_batch_size is batch_size "
                "times the number of processes), or resume from a checkpoint at an epoch's end"
            )
        return pending["batches"]

    def _check_group(self) -> None:
        """Refuse a loader that was made before the process group: every process would train on all the data."""
        size, rank = process_group()
        if self._adopt_group and (size, rank) != (self.num_replicas, self.rank):
            raise ConfigError(
                f"this {type(self).__name__} was made for process {self.rank} of {self.num_replicas} and runs on "
                f"process {rank} of {size}; make it inside train_dataloader(), or pass num_replicas and rank"
            )


def progress_of(trainer: L.Trainer) -> tuple[int, int]:
    """Tell the epoch and how many of its batches went through the optimizer.

    A batch whose step raised does not count, so a checkpoint written on the exception repeats it. The trainer's epoch
    is right where what it passes to ``set_epoch`` is not: Lightning 2.6 is one ahead once a run with ``max_steps`` has
    resumed from an epoch's end.
    """
    processed: int = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return trainer.current_epoch, processed


def process_group() -> tuple[int, int]:
    """Size of the process group and rank in it; (1, 0) where there is none."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0
