"""The loader by itself: order, sharing out, resumption, refusals."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, TensorDataset

from morphlightning.data import ResumableLoader
from morphlightning.errors import ConfigError, DataError

DATA = TensorDataset(torch.arange(23))


def batches(loader: DataLoader[Any], epoch: int | None = None) -> list[list[int]]:
    if epoch is not None:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.tolist() for (batch,) in loader]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [*chain.from_iterable(parts)]


class Keyed(torch.utils.data.Dataset[Any]):
    """Serves the keys that it is asked for."""

    def __len__(self) -> int:
        return 10

    def at_epoch(self, epoch: int, index: int) -> int:
        return 1000 * epoch + index

    def __getitem__(self, key: int) -> tuple[torch.Tensor]:
        return (torch.tensor(key),)


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    first, second = ResumableLoader(DATA, 4, seed=1), ResumableLoader(DATA, 4, seed=1)
    batches(first, 0)
    order = batches(first, 1)
    assert order == batches(second, 1)
    assert sorted(flat(order)) == list(range(23))
    assert order != batches(second, 2)
    assert order != batches(ResumableLoader(DATA, 4, seed=7), 1)
    assert len(first) == len(order) == 6


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    assert flat(batches(ResumableLoader(DATA, 4, shuffle=False), 3)) == list(range(23))
    assert flat(batches(ResumableLoader(DATA, 4, sampler=SequentialSampler(DATA)), 3)) == list(range(23))


def test_the_batches_of_the_ranks_are_together_those_of_one_process() -> None:
    data = TensorDataset(torch.arange(24))
    whole = batches(ResumableLoader(data, 6, seed=2), 5)
    parts = [batches(ResumableLoader(data, 2, seed=2, num_replicas=3, rank=rank), 5) for rank in range(3)]
    assert [sorted(flat(together)) for together in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


@pytest.mark.parametrize(("used", "workers"), [*((used, 0) for used in range(7)), (0, 2), (3, 2), (6, 2)])
def test_goes_on_where_it_stood(used: int, workers: int) -> None:
    settings: dict[str, Any] = {"seed": 4, "num_workers": workers, "persistent_workers": workers > 0}
    loader = ResumableLoader(DATA, 4, **settings)
    loader.sampler.set_epoch(2)
    iterator = iter(loader)
    seen = [next(iterator)[0].tolist() for _ in range(used)]
    state = loader.state_dict()
    fresh = ResumableLoader(DATA, 4, **settings)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    if used == len(loader):
        assert (state["epoch"], state["batches"]) == (3, 0)
        assert batches(fresh) == batches(loader, 3)
    elif used:
        assert (state["epoch"], state["batches"]) == (2, used)
        assert seen + batches(fresh) == batches(loader, 2)
        assert batches(fresh) == batches(loader, 2)  # the next pass is whole again
    else:
        assert batches(fresh, 2) == batches(loader, 2)


def test_another_epoch_than_the_saved_one_is_whole() -> None:
    loader = ResumableLoader(DATA, 4)
    loader.load_state_dict({"epoch": 1, "batches": 3, "global_batch_size": 4, "samples": 23, "seed": 0})
    assert batches(loader, 2) == batches(ResumableLoader(DATA, 4), 2)
    assert batches(loader, 1) == batches(ResumableLoader(DATA, 4), 1)  # what was saved is over


def test_skipped_batches_are_not_read() -> None:
    read = []

    class Watched(Keyed):
        def __getitem__(self, key: int) -> tuple[torch.Tensor]:
            read.append(key)
            return super().__getitem__(key)

    loader = ResumableLoader(Watched(), 2)
    loader.load_state_dict({"epoch": 0, "batches": 4, "global_batch_size": 2, "samples": 10, "seed": 0})
    assert len(batches(loader)) == 1
    assert len(read) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_the_epoch_reaches_datasets_that_ask_for_it_even_in_workers_that_live_on(workers: int) -> None:
    loader = ResumableLoader(Keyed(), 5, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 4):
        assert sorted(flat(batches(loader, epoch))) == [1000 * epoch + i for i in range(10)]


def test_sample_indices_name_the_batch_of_this_rank() -> None:
    for rank in (0, 1):
        loader = ResumableLoader(DATA, 4, seed=3, num_replicas=2, rank=rank)
        loader.sampler.set_epoch(2)
        assert [loader.sample_indices(i) for i in range(len(loader))] == batches(loader)
        assert loader.sample_indices(99) == []
    keyed = ResumableLoader(Keyed(), 4)
    keyed.sampler.set_epoch(3)
    assert max(keyed.sample_indices(0)) < 10  # indices, not keys


def test_a_trainer_that_counts_is_believed() -> None:
    loader = ResumableLoader(DATA, 4, progress=lambda: (5, 1))
    loader.sampler.set_epoch(6)
    iterator = iter(loader)
    assert [next(iterator)[0].tolist() for _ in range(2)] == batches(ResumableLoader(DATA, 4), 5)[:2]
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (5, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(ResumableLoader(DATA, 4, num_workers=workers), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (ResumableLoader(DATA, 3), "global_batch_size: 4 then, 3 now"),
        (ResumableLoader(DATA, 4, seed=1), "seed: 0 then, 1 now"),
        (ResumableLoader(TensorDataset(torch.arange(20)), 4), "samples: 23 then, 20 now"),
        (ResumableLoader(DATA, 4, num_replicas=2, rank=0), "global_batch_size: 4 then, 8 now"),
    ],
)
def test_the_middle_of_an_epoch_of_other_data_is_refused(other: ResumableLoader[Any], named: str) -> None:
    state = {"epoch": 1, "batches": 3, "global_batch_size": 4, "samples": 23, "seed": 0}
    other.load_state_dict(state)
    with pytest.raises(ConfigError, match=named):
        next(iter(other))
    other.load_state_dict({**state, "batches": 0})  # an epoch's end does not depend on them
    next(iter(other))


def test_another_number_of_processes_with_the_same_batches_is_fine() -> None:
    data = TensorDataset(torch.arange(24))
    state = {"epoch": 1, "batches": 1, "global_batch_size": 8, "samples": 24, "seed": 0}
    loaders = [ResumableLoader(data, 4, num_replicas=2, rank=rank) for rank in (0, 1)]
    for loader in loaders:
        loader.load_state_dict(state)
    together = sorted(flat(flat(batches(loader)) for loader in loaders))
    assert together == sorted(flat(batches(ResumableLoader(data, 8), 1)[1:]))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        ResumableLoader(DATA, 0)
    with pytest.raises(DataError, match=r"TensorDataset\) is empty"):
        ResumableLoader(TensorDataset(torch.arange(0)), 4)
    with pytest.raises(ConfigError, match="RandomSampler"):
        ResumableLoader(DATA, 4, sampler=RandomSampler(DATA))


def test_a_loader_made_before_the_process_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    early, explicit = ResumableLoader(DATA, 4), ResumableLoader(DATA, 4, num_replicas=1, rank=0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    with pytest.raises(ConfigError, match=r"process 0 of 1 and runs on process 1 of 2.*train_dataloader"):
        next(iter(early))
    next(iter(explicit))
    late = ResumableLoader(DATA, 4)
    assert (late.num_replicas, late.rank) == (2, 1)
    next(iter(late))
