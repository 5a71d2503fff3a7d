"""Where auxiliary variables live: whatever is put is taken, by global index, wherever they are kept."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphlightning.bregman.samples import STORAGES, SampleStore, Storage, select

CPU = torch.device("cpu")


def values(index: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Recognizable: x is i and 10 i, y a matrix of i, known whether i is odd."""
    rows = index.to(dtype)
    return {
        "x1": torch.stack([rows, 10 * rows], 1),
        "z1": rows[:, None, None].expand(-1, 2, 3).contiguous(),
        "counted": index % 2 == 1,
    }


def check(store: SampleStore, index: Tensor, dtype: torch.dtype = torch.float32) -> None:
    taken = store.take(index, CPU)
    assert taken is not None
    samples, known = taken
    assert known.all()
    for name, expected in values(index, dtype).items():
        torch.testing.assert_close(samples[name], expected, rtol=0, atol=0)


@given(
    size=st.integers(1, 24),
    world=st.integers(1, 4),
    storage=st.sampled_from(STORAGES),
    seed=st.integers(0, 99),
    batch=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_what_is_put_in_any_order_is_taken_in_any_order(size: int, world: int, storage: Storage, seed: int, batch: int):
    generator = torch.Generator().manual_seed(seed)
    for rank in range(world):
        mine = torch.tensor(range(rank, size, world), dtype=torch.long)
        store = SampleStore(size, rank, world, storage)
        assert len(store.known) == len(mine)
        assert not store.known.any()
        for _ in range(2):
            for part in mine[torch.randperm(len(mine), generator=generator)].split(batch):
                store.put(part, values(part))
        for part in mine[torch.randperm(len(mine), generator=generator)].split(batch):
            if len(part):
                check(store, part)
        if len(mine):
            check(store, mine)
            check(store, mine.flip(0))
            state = store.state()
            assert torch.equal(state["index"], mine)
            assert torch.equal(state["x1"], values(mine)["x1"])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_stay(storage: Storage, dtype: torch.dtype):
    store, index = SampleStore(9, 1, 2, storage), torch.tensor([1, 3, 5, 7])
    store.put(index, values(index, dtype))
    check(store, index, dtype)
    check(store, torch.tensor([7, 1]), dtype)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_known_is_said(storage: Storage):
    store = SampleStore(10, 0, 2, storage)
    assert store.take(torch.tensor([0, 4]), CPU) is None
    index = torch.tensor([4, 8])
    store.put(index, values(index))
    assert store.take(torch.tensor([0, 2]), CPU) is None
    taken = store.take(torch.tensor([8, 0, 4]), CPU)
    assert taken is not None
    samples, known = taken
    assert known.tolist() == [True, False, True]
    assert torch.equal(samples["x1"][known], values(torch.tensor([8, 4]))["x1"])
    whole = store.take(torch.tensor([0, 2, 4, 6, 8]), CPU)
    assert whole is not None
    assert whole[1].tolist() == [False, False, True, False, True]
    assert torch.equal(store.state()["index"], torch.tensor([4, 8]))


@pytest.mark.parametrize("storage", STORAGES)
def test_all_samples_at_once_are_handed_out_and_taken_back(storage: Storage):
    store, index = SampleStore(6, 0, 1, storage), torch.arange(6)
    store.put(index, values(index))
    for step in range(1, 4):
        taken = store.take(index, CPU)
        assert taken is not None
        samples = taken[0]
        samples["x1"].add_(1)  # in place, as methods do
        samples["z1"] = samples["z1"] + 1  # and anew
        store.put(index, samples)
        again = store.take(torch.tensor([5, 2]), CPU)
        assert again is not None
        for name in ("x1", "z1"):
            assert torch.equal(again[0][name], values(torch.tensor([5, 2]))[name] + step)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_batch_is_a_copy_until_it_is_put(storage: Storage):
    store, index = SampleStore(6, 0, 1, storage), torch.arange(6)
    store.put(index, values(index))
    part = torch.tensor([1, 4])
    taken = store.take(part, CPU)
    assert taken is not None
    taken[0]["x1"].fill_(-1)
    check(store, part)
    store.put(part, taken[0])
    again = store.take(torch.tensor([4, 5, 1]), CPU)
    assert again is not None
    assert again[0]["x1"][:, 0].tolist() == [-1, 5, -1]


@pytest.mark.parametrize("storage", STORAGES)
def test_views_of_what_is_kept_are_not_dropped_in_silence(storage: Storage):
    """All samples as they lie, of which a slice would be put back in another place."""
    store, index = SampleStore(6, 0, 1, storage), torch.arange(6)
    store.put(index, values(index))
    taken = store.take(index, CPU)
    assert taken is not None
    with pytest.raises(RuntimeError, match="clone"):
        store.put(torch.tensor([4, 5]), {"x1": taken[0]["x1"][:2]})


def test_the_state_is_a_copy():
    store, index = SampleStore(6, 0, 1), torch.arange(6)
    store.put(index, values(index))
    state = store.state()
    taken = store.take(index, CPU)
    assert taken is not None
    taken[0]["x1"].fill_(-1)
    assert torch.equal(state["x1"], values(index)["x1"])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_process_without_samples(storage: Storage):
    store, none = SampleStore(2, 2, 3, storage), torch.zeros(0, dtype=torch.long)
    assert store.take(none, CPU) is None
    store.put(none, values(none))
    assert store.take(none, CPU) is None
    assert len(store.state()["index"]) == 0


@given(
    size=st.integers(1, 20),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    unknown=st.sets(st.integers(0, 19)),
    storage=st.sampled_from(STORAGES),
)
@settings(max_examples=60, deadline=None)
def test_states_are_selected_for_other_numbers_of_processes(
    size: int, before: int, after: int, unknown: set[int], storage: Storage
):
    states = []
    for rank in range(before):
        store = SampleStore(size, rank, before)
        index = torch.tensor([i for i in range(rank, size, before) if i not in unknown], dtype=torch.long)
        for part in index.flip(0).split(3):
            if len(part):
                store.put(part, values(part))
        states.append(store.state())
    found = []
    for rank in range(after):
        mine = select(states, rank, after)
        expected = torch.tensor([i for i in range(rank, size, after) if i not in unknown], dtype=torch.long)
        assert torch.equal(mine["index"], expected)
        store = SampleStore(size, rank, after, storage)
        store.load(mine, CPU)
        found.append(int(store.known.sum()))
        if len(expected):
            check(store, expected)
    assert sum(found) == len(set(range(size)) - unknown)


def test_selected_states_of_the_same_processes_are_those_of_before():
    states = []
    for rank in range(3):
        store, index = SampleStore(11, rank, 3), torch.arange(rank, 11, 3)
        store.put(index, values(index))
        states.append(store.state())
    for rank, state in enumerate(states):
        mine = select(states, rank, 3)
        assert mine.keys() == state.keys()
        assert all(torch.equal(mine[name], state[name]) for name in state)


def test_files_are_gone_with_the_store():
    store, index = SampleStore(4, 0, 1, "memmap"), torch.arange(4)
    store.put(index, values(index))
    folder = store._folder
    assert folder is not None
    assert sorted(os.listdir(folder)) == ["counted", "x1", "z1"]
    taken = store.take(index, CPU)
    del store
    gc.collect()
    assert not os.path.exists(folder)
    assert taken is not None
    assert torch.equal(taken[0]["x1"], values(index)["x1"])
