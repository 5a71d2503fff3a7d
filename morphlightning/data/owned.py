"""A loader for training that keeps variables of its own for each sample: every process owns its samples for ever."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from morphlightning.data.loader import EpochSampler, ResumableLoader, process_group
from morphlightning.errors import ConfigError, DataError

_LOOKED_AT = 8  # samples that `variation` reads; a random flip escapes one of them half the time, all 1 time in 256
_CARRIED = (
    *("batch_size", "num_workers", "pin_memory", "collate_fn", "timeout", "worker_init_fn", "multiprocessing_context"),
    *("prefetch_factor", "persistent_workers"),
    *("progress", "passes"),  # those of our own loaders
)


class OwnedSampler(EpochSampler):
    """Draws global batches by (seed, epoch, pass) and serves of each what this process owns.

    Pass p of epoch e is number e * passes + p of all passes, and its order is that of this number: a permutation by
    (seed, number), or 0, 1, 2, ... Process r of W owns the samples i with i mod W = r.

    Iterating yields the keys of one batch after the other, each a list, and leaves out empty batches.

    Attributes:
        samples: Samples of the dataset.
        global_batch_size: Samples of a batch of all processes together.
        batches_per_pass: Batches of one pass.
        full: Whether one batch holds all samples; then they keep their order and are read as of epoch 0.
        skip: Batches that an iteration which begins now leaves out.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        num_replicas: int,
        rank: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        passes: int,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=shuffle, seed=seed)
        self.samples, self.passes = len(dataset), passes  # type: ignore[arg-type]
        self._batch_size, self._shuffles = batch_size, shuffle
        self.share(num_replicas, rank)

    def share(self, num_replicas: int, rank: int) -> None:
        """Serve what a process of so many owns."""
        self.num_replicas, self.rank = num_replicas, rank
        self.global_batch_size = min(self._batch_size * num_replicas, self.samples)
        self.batches_per_pass = math.ceil(self.samples / self.global_batch_size)
        self.full = self.batches_per_pass == 1
        self.shuffle = self._shuffles and not self.full

    def __len__(self) -> int:
        return self.batches_per_pass * self.passes

    def batch(self, number: int, epoch: int) -> list[int]:
        """Indices of a batch of this process."""
        of_all = epoch * len(self) + number
        which, position = divmod(of_all, self.batches_per_pass)
        order = _permutation(self.samples, self.seed + which) if self.shuffle else torch.arange(self.samples)
        stretch = order[position * self.global_batch_size : (position + 1) * self.global_batch_size]
        indices: list[int] = stretch[stretch % self.num_replicas == self.rank].tolist()
        return indices

    def order(self) -> list[int]:
        """Indices of this process in the current epoch, all of them."""
        return [*chain.from_iterable(self.batch(number, self.epoch) for number in range(len(self)))]

    def batch_keys(self, number: int, epoch: int) -> list[Any]:
        """What the dataset is asked for to get a batch of this process."""
        which = 0 if self.full else epoch * self.passes + number // self.batches_per_pass
        return self.keys(self.batch(number, epoch), which)

    def __iter__(self) -> Iterator[list[Any]]:
        # no generator: the epoch and what to skip are those of now, however late the first batch is asked for
        epoch, first = self.epoch, self.skip
        return filter(None, (self.batch_keys(number, epoch) for number in range(first, len(self))))


class OwnedLoader(ResumableLoader[Any]):
    """Serves ``[input, target, indices]`` to training that keeps variables for each sample, such as lifted training.

    ``indices`` are the positions of the samples in the dataset, int64 of shape (B,). Sample i belongs to process
    i mod ``num_replicas``, in every epoch; no sample is repeated to even out the processes, none is left out. The
    order is 0, 1, 2, ... or a permutation by (seed, epoch, pass), and the k-th global batch is its k-th stretch of
    ``batch_size * num_replicas`` samples, of which a process serves those that it owns. So global batches depend on
    their size, not on the number of processes. All processes serve the same number of batches; those of one process
    differ in size, and may be empty: tensors of length 0.

    Where one global batch holds all samples, a process reads its share once and keeps it in memory. The very same
    tensors are served ever after, so do not change them in place. Their order is that of the dataset, shuffled or not,
    and a dataset with ``at_epoch`` is read as of epoch 0.

    A run resumes inside an epoch as with :class:`ResumableLoader`. P passes in each of E epochs serve what one pass in
    each of P * E epochs serves, and spare a Trainer the work at epochs' ends.

    Args:
        dataset: A map-style dataset with a length, of pairs (input, target) of tensors, arrays or numbers.
        batch_size: Samples of one batch of one process, on average.
        shuffle: Shuffle anew in each pass.
        seed: Seed of the order.
        num_replicas: Number of processes that share the data; by default those of the process group, or 1, as they are
            when the loader is asked for its length.
        rank: Number of this process among them.
        passes: How often an epoch goes through the data.
        progress: See :class:`ResumableLoader`.
        sampler: None, or torch's SequentialSampler, which Lightning's ``overfit_batches`` puts in: no shuffling.
        **kwargs: What else DataLoader takes, such as ``num_workers``; not ``drop_last`` nor ``in_order=False``. A
            ``collate_fn`` has to keep the samples' order.

    Raises:
        ConfigError: A setting is out of its range, the sampler is one that cannot be resumed, or the dataset is not
            map-style.
        DataError: The dataset is empty or has fewer samples than there are processes; at the first batch, its items
            are no pairs.
    """

    _order: OwnedSampler

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        passes: int = 1,
        progress: Callable[[], tuple[int, int]] | None = None,
        sampler: Sampler[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_map_style(dataset)
        if passes < 1:
            raise ConfigError(f"OwnedLoader: passes={passes}, expected at least 1")
        if kwargs.get("drop_last"):
            raise ConfigError(
                "OwnedLoader: drop_last=True, but each pass serves every sample; leave drop_last out (the last batch "
                "is smaller where batches do not divide the data)"
            )
        if not kwargs.get("in_order", True):
            raise ConfigError(
                "OwnedLoader: in_order=False, but a batch would come with the indices of another one; leave it out"
            )
        self.passes = passes
        super().__init__(
            dataset,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            num_replicas=num_replicas,
            rank=rank,
            progress=progress,
            sampler=sampler,
            **kwargs,
        )
        self._check_enough()

    @property
    def size(self) -> int:
        """Number of samples in the dataset."""
        return self._order.samples

    @property
    def batches_per_pass(self) -> int:
        """Number of batches that go once through the data, the same for each process."""
        return self._order.batches_per_pass

    @property
    def full_batch(self) -> bool:
        """Whether one global batch holds all samples."""
        return self._order.full

    def sample_indices(self, batch_idx: int) -> list[int]:
        """Positions in ``dataset`` of the samples of a batch of this process, in the current epoch."""
        return self._order.batch(batch_idx, self._order.epoch) if batch_idx in range(len(self)) else []

    def variation(self) -> str | None:
        """Find out whether a sample is the same whenever it is served.

        Reads a few samples of this process twice and, where the dataset has ``at_epoch``, as of the next epoch, and
        compares them bit for bit. The global random states of torch (CPU), numpy and Python stay as they were. What
        changes seldom can escape, and each process looks at samples of its own. A change from epoch to epoch is found
        where a full batch would not show it, too.

        Returns:
            What changed, such as ``"input of sample 0 differs between two readings"``; None where nothing did.

        Raises:
            DataError: The items are no pairs (input, target).
        """
        owned = range(self.rank, self.size, self.num_replicas)
        occasions = ["two readings", *(["epochs 0 and 1"] if hasattr(self.dataset, "at_epoch") else [])]
        with isolate_rng(include_cuda=False):
            for index in owned[:: math.ceil(len(owned) / _LOOKED_AT)]:
                once = self._read([index])
                for epoch, occasion in enumerate(occasions):
                    again = self._read([index], epoch)
                    for name, one, other in zip(("input", "target"), once, again, strict=False):
                        if not _same_bits(one, other):
                            return f"{name} of sample {index} differs between {occasion}"
        return None

    def _make_order(self, dataset: Dataset[Any], batch_size: int, shuffle: bool) -> OwnedSampler:
        return OwnedSampler(
            dataset,
            self.num_replicas,
            self.rank,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            passes=self.passes,
        )

    def __len__(self) -> int:
        self._check_group()
        return super().__len__()

    def _check_group(self) -> None:
        """Share the samples out anew in a loader made before the process group, as a script under DDP makes it."""
        size, rank = process_group()
        if self._adopt_group and (size, rank) != (self.num_replicas, self.rank):
            self.num_replicas, self.rank = size, rank
            self._check_enough()
            self._order.share(size, rank)
            for cached in ("_whole", "_empty"):
                self.__dict__.pop(cached, None)

    def _check_enough(self) -> None:
        if (count := len(self.dataset)) < self.num_replicas:  # type: ignore[arg-type]
            raise DataError(
                f"OwnedLoader: {count} sample(s) for {self.num_replicas} processes, so some would own none; use at "
                f"most {count} processes, or add data"
            )

    @property
    def _index_sampler(self) -> OwnedSampler:
        # DataLoader takes from here the keys of each batch. Its own batch sampler knows batches of one size only.
        return self._order

    def _identity(self) -> dict[str, int]:
        size = {"global_batch_size": self._order.global_batch_size}  # not beyond the data: it may be the full batch
        return super()._identity() | size | {"passes": self.passes, "shuffle": int(self._order.shuffle)}

    def _batches_from(self, first: int) -> Iterator[list[Tensor]]:
        epoch, rest = self._epoch, range(first, len(self))
        if self.full_batch:
            yield from (list(self._whole) for _ in rest)
            return
        empty = self._empty
        self._order.skip = first
        loaded = DataLoader.__iter__(self)  # begins to iterate over the sampler, with workers even twice
        self._order.skip = 0
        for number in rest:
            indices = self._order.batch(number, epoch)
            yield self._indexed(next(loaded), indices) if indices else list(empty)

    @cached_property
    def _whole(self) -> list[Tensor]:
        with isolate_rng(include_cuda=False):
            return self._read(range(self.rank, self.size, self.num_replicas))

    @cached_property
    def _empty(self) -> list[Tensor]:
        with isolate_rng(include_cuda=False):
            return [part[:0] for part in self._read([self.rank])]

    def _read(self, indices: Sequence[int], epoch: int = 0) -> list[Tensor]:
        """Read a batch in this process."""
        keys = self._order.keys(indices, epoch)
        fetch: Callable[[list[Any]], list[Any]] | None = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[key] for key in keys] if fetch is None else fetch(keys)
        try:
            batch = self.collate_fn(items)
        except TypeError as error:  # what torch says of types that it cannot make tensors of
            raise self._no_pairs(str(error)) from error
        return self._indexed(batch, indices)

    def _indexed(self, batch: Any, indices: Sequence[int]) -> list[Tensor]:
        """Put the indices beside the inputs and targets, all in page-locked memory if that was asked for."""
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise self._no_pairs(f"a batch is {_describe(batch)}")
        if not all(isinstance(part, Tensor) and part.ndim and len(part) == len(indices) for part in batch):
            raise self._no_pairs(f"a batch of {len(indices)} sample(s) is {_describe(batch)}")
        parts = [*batch, torch.tensor(indices, dtype=torch.int64)]
        return [part.pin_memory() for part in parts] if self.pin_memory and torch.cuda.is_available() else parts

    def _no_pairs(self, found: str) -> DataError:
        return DataError(
            f"OwnedLoader: the items of {type(self.dataset).__name__} are no pairs (input, target) of tensors, arrays "
            f"or numbers that make a batch ({found}); let the dataset serve such pairs, or give a collate_fn that "
            "makes a tensor of inputs and one of targets, a row a sample"
        )


def indexed(
    data: Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor], batch_size: int | None = None, **kwargs: Any
) -> OwnedLoader:
    """Make an :class:`OwnedLoader` out of the training data that are there.

    Args:
        data: A map-style dataset of pairs, two tensors (inputs, targets) with a row for each sample, or a DataLoader,
            of which the dataset and the settings are taken. Whether that one shuffles is kept, its random order is
            not: the order comes from ``seed``.
        batch_size: Samples of one batch of one process; None for that of the DataLoader, and without one for all.
        **kwargs: Settings of :class:`OwnedLoader`; they go before those of the DataLoader.

    Raises:
        ConfigError: The DataLoader does something that cannot be kept up, or ``data`` is none of these.
        DataError: The tensors have different lengths; or see :class:`OwnedLoader`.
    """
    if isinstance(data, DataLoader):
        settings, dataset = _settings(data), data.dataset
    else:
        settings, dataset = {}, _pairs(data) if isinstance(data, tuple) else data
    _check_map_style(dataset)
    settings = {"batch_size": len(dataset) or 1} | settings | kwargs  # type: ignore[arg-type]
    if batch_size is not None:
        settings["batch_size"] = batch_size
    return OwnedLoader(dataset, **settings)


def _check_map_style(dataset: object) -> None:
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ConfigError(
            f"OwnedLoader: {type(dataset).__name__} is no dataset with a length whose samples are fetched by their "
            "number, and samples are owned by their number; give a map-style dataset"
        )


def _settings(loader: DataLoader[Any]) -> dict[str, Any]:
    """Take over the settings of a loader, or say why that cannot be."""
    _check_map_style(loader.dataset)
    sampler: Any = loader.sampler
    obstacle = None
    if loader.batch_size is None:
        obstacle = "it makes batches by a batch_sampler or by the dataset itself"
    elif isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(loader.dataset)):  # type: ignore[arg-type]
        obstacle = "it draws some samples twice or never"
    elif not isinstance(sampler, RandomSampler | SequentialSampler | DistributedSampler):
        obstacle = f"its sampler is a {type(sampler).__name__}"
    elif type(loader.batch_sampler) is not BatchSampler or loader.drop_last:
        obstacle = "drop_last=True leaves out samples"
    if obstacle is not None:
        raise ConfigError(
            f"indexed() cannot take over this {type(loader).__name__}: {obstacle}, and training that keeps variables "
            "for each sample goes through all samples, each once; make it without that, or pass its dataset: "
            "indexed(loader.dataset, batch_size=..., shuffle=...)"
        )
    shuffle = isinstance(sampler, RandomSampler) or getattr(sampler, "shuffle", False)
    settings = {name: getattr(loader, name) for name in _CARRIED if hasattr(loader, name)}
    return settings | {"shuffle": shuffle, "seed": getattr(sampler, "seed", 0)}


def _pairs(tensors: tuple[Any, ...]) -> TensorDataset:
    if len(tensors) != 2 or not all(isinstance(part, Tensor) and part.ndim for part in tensors):
        raise ConfigError(f"indexed(): got {_describe(tensors)}, expected two tensors (inputs, targets)")
    inputs, targets = tensors
    if len(inputs) != len(targets):
        raise DataError(f"indexed(): {len(inputs)} inputs and {len(targets)} targets, expected as many of both")
    return TensorDataset(inputs, targets)


def _describe(batch: Any) -> str:
    parts = batch if isinstance(batch, list | tuple) else [batch]
    kinds = [f"{type(part).__name__} of shape {tuple(getattr(part, 'shape', ()))}" for part in parts]
    return f"a {type(batch).__name__} of {', '.join(kinds) or 'nothing'}" if parts is batch else kinds[0]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare tensors bit for bit, so that NaN equals NaN."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@lru_cache(maxsize=4)  # workers read ahead: two passes may be under way at once
def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
