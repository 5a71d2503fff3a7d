"""The loader of training that owns samples: global batches, ownership, the full batch, resumption, refusals."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from morphlightning.data import Digits, OwnedLoader, ResumableLoader, indexed
from morphlightning.errors import ConfigError, DataError

Batches = list[list[int]]

pytestmark = pytest.mark.filterwarnings(
    "ignore:You passed in a `val_dataloader` but have no `validation_step`",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create",
)


def pairs(count: int) -> TensorDataset:
    """Pairs that tell their index: inputs (2,) and a target."""
    return TensorDataset(torch.arange(count * 2.0).view(count, 2), torch.arange(count) * 10)


def served(loader: OwnedLoader, epoch: int | None = None) -> Batches:
    """Indices of each batch, when inputs and targets have been seen to be those of the indices."""
    if epoch is not None:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    batches = []
    for inputs, targets, indices in loader:
        assert indices.dtype == torch.int64
        assert (inputs.dtype, targets.dtype, inputs.shape[1:]) == (torch.float32, torch.int64, (2,))
        assert torch.equal(inputs, torch.stack([2.0 * indices, 2.0 * indices + 1], 1))
        assert torch.equal(targets, indices * 10)
        batches.append(indices.tolist())
    return batches


def flat(batches: Batches) -> list[int]:
    return [*chain.from_iterable(batches)]


@st.composite
def settings(draw: st.DrawFn) -> tuple[int, int, int, bool, int, int]:
    world = draw(st.sampled_from([1, 2, 3]))
    return (
        draw(st.integers(world, 40)),
        draw(st.integers(1, 16)),
        world,
        draw(st.booleans()),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 5)),
    )


@given(settings())
def test_the_processes_share_out_the_batches_of_one_process(given: tuple[int, int, int, bool, int, int]) -> None:
    count, size, world, shuffle, passes, epoch = given
    data = pairs(count)
    whole = OwnedLoader(data, size * world, shuffle=shuffle, seed=3, passes=passes)
    one = served(whole, epoch)
    loaders = [
        OwnedLoader(data, size, shuffle=shuffle, seed=3, passes=passes, num_replicas=world, rank=rank)
        for rank in range(world)
    ]
    parts = [served(loader, epoch) for loader in loaders]
    for rank, part in enumerate(parts):
        assert part == [[index for index in batch if index % world == rank] for batch in one]
        assert [loaders[rank].sample_indices(number) for number in range(len(part))] == part
        assert loaders[rank].sampler.order() == flat(part)  # type: ignore[attr-defined]
    per_pass = -(-count // (size * world))
    for loader in [whole, *loaders]:
        assert (loader.batches_per_pass, loader.passes, loader.size) == (per_pass, passes, count)
        assert len(loader) == len(one) == per_pass * passes
        assert loader.full_batch == (size * world >= count)
    for number in range(passes):
        one_pass = flat(one[number * per_pass : (number + 1) * per_pass])
        assert sorted(one_pass) == [*range(count)]
        assert shuffle or one_pass == [*range(count)]


def test_shuffling_depends_on_seed_epoch_and_pass() -> None:
    loader = OwnedLoader(pairs(30), 10, shuffle=True, passes=2)
    first = served(loader, 0)
    assert first == served(OwnedLoader(pairs(30), 10, shuffle=True, passes=2), 0)
    assert len({tuple(order) for order in (flat(first[:3]), flat(first[3:]), flat(served(loader, 1)[:3]))}) == 3
    assert first != served(OwnedLoader(pairs(30), 10, shuffle=True, passes=2, seed=1), 0)


def test_passes_are_epochs_without_their_ends() -> None:
    passes = OwnedLoader(pairs(10), 4, shuffle=True, passes=3)
    epochs = ResumableLoader(pairs(10), 4)
    for epoch in (0, 2):
        expected = []
        for number in range(3 * epoch, 3 * epoch + 3):
            epochs.sampler.set_epoch(number)  # type: ignore[attr-defined]
            expected += [(targets // 10).tolist() for _, targets in epochs]
        assert served(passes, epoch) == expected


def test_empty_batches_have_shapes_and_dtypes() -> None:
    loader = OwnedLoader(pairs(6), 1, num_replicas=3, rank=2)  # 0 1 2 | 3 4 5
    assert served(loader) == [[2], [5]]
    loader = OwnedLoader(pairs(9), 1, shuffle=True, num_replicas=2, rank=1)
    sizes = [len(batch) for epoch in range(9) for batch in served(loader, epoch)]  # `served` checks the shapes
    assert set(sizes) == {0, 1, 2}
    first = OwnedLoader(pairs(3), 1, num_replicas=2, rank=1)  # 0 1 | 2: nothing of the second is ours
    inputs, targets, indices = [*first][1]
    assert (inputs.shape, targets.shape, indices.shape) == ((0, 2), (0,), (0,))


class Counted(Dataset[Any]):
    """Keyed pairs that count how often they are read."""

    def __init__(self) -> None:
        self.read: list[Any] = []

    def __len__(self) -> int:
        return 7

    def at_epoch(self, epoch: int, index: int) -> int:
        return 100 * epoch + index

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        self.read.append(key)
        return torch.full((3,), float(key)), key


def test_the_full_batch_is_read_once() -> None:
    data = Counted()
    loader = OwnedLoader(data, 4, shuffle=True, passes=3, num_replicas=2, rank=1)
    assert loader.full_batch
    loader.sampler.set_epoch(5)  # type: ignore[attr-defined]
    first = next(iter(loader))
    for batch in [*loader, *loader]:
        assert batch is not first
        assert all(part is kept for part, kept in zip(batch, first, strict=True))
    assert first[2].tolist() == [1, 3, 5]
    assert data.read == [1, 3, 5]  # as of epoch 0
    assert len([*loader]) == len(loader) == 3


def test_each_pass_is_an_epoch_to_the_dataset() -> None:
    loader = OwnedLoader(Counted(), 4, passes=2)
    loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert [targets.tolist() for _, targets, _ in loader] == [
        *([600, 601, 602, 603], [604, 605, 606]),
        *([700, 701, 702, 703], [704, 705, 706]),
    ]


def test_batches_belong_to_the_epoch_that_began() -> None:
    loader = OwnedLoader(pairs(12), 4, shuffle=True)
    expected = served(loader, 1)
    iterator = iter(loader)
    seen = [next(iterator)]
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    seen += iterator
    assert [indices.tolist() for *_, indices in seen] == expected
    assert [(targets // 10).tolist() for _, targets, _ in seen] == expected


workers = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])


@workers
@pytest.mark.parametrize("persistent", [False, True])
def test_any_number_of_workers_serves_the_same(workers: int, persistent: bool) -> None:
    given: dict[str, Any] = {"shuffle": True, "passes": 2, "num_replicas": 2, "rank": 1}
    loader = OwnedLoader(pairs(21), 2, **given, num_workers=workers, persistent_workers=persistent and workers > 0)
    for epoch in (0, 1, 5):
        assert served(loader, epoch) == [loader.sample_indices(number) for number in range(len(loader))]
    partly = iter(loader)
    next(partly)
    assert served(loader, 2) == served(OwnedLoader(pairs(21), 2, **given), 2)
    full = OwnedLoader(pairs(21), 21, passes=2, num_workers=workers, persistent_workers=persistent and workers > 0)
    assert served(full) == [[*range(21)]] * 2


@workers
@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("used", range(9))
def test_goes_on_where_it_stood(used: int, size: int, workers: int) -> None:
    given: dict[str, Any] = {"shuffle": True, "passes": 2, "num_replicas": 2, "rank": 0, "num_workers": workers}
    loader = OwnedLoader(pairs(15), size, **given)
    used = min(used, len(loader))
    loader.sampler.set_epoch(2)  # type: ignore[attr-defined]
    iterator = iter(loader)
    seen = [next(iterator)[2].tolist() for _ in range(used)]
    state = loader.state_dict()
    fresh = OwnedLoader(pairs(15), size, **given)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    if used == len(loader):
        assert served(fresh) == served(loader, 3)
    elif used:
        assert seen + served(fresh) == served(loader, 2)
        assert served(fresh) == served(loader, 2)  # the next time the epoch is whole again
    else:
        assert served(fresh, 2) == served(loader, 2)


def halfway(loader: OwnedLoader) -> dict[str, int]:
    next(iter(loader))
    return loader.state_dict()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 3}, "global_batch_size: 4 then, 3 now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"passes": 3}, "passes: 2 then, 3 now"),
        ({"shuffle": False}, "shuffle: 1 then, 0 now"),
        ({"dataset": pairs(21)}, "samples: 23 then, 21 now"),
        ({"num_replicas": 2, "rank": 0}, "global_batch_size: 4 then, 8 now"),
    ],
)
def test_the_middle_of_an_epoch_of_other_batches_is_refused(changed: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"dataset": pairs(23), "batch_size": 4, "shuffle": True, "passes": 2}
    state = halfway(OwnedLoader(**given))
    other = OwnedLoader(**given | changed)
    other.load_state_dict(state)
    with pytest.raises(ConfigError, match=named):
        next(iter(other))


def test_the_middle_of_an_epoch_of_another_kind_of_loader_is_refused() -> None:
    other = ResumableLoader(pairs(23), 4)
    next(iter(other))
    loader = OwnedLoader(pairs(23), 4)
    loader.load_state_dict(other.state_dict())
    with pytest.raises(ConfigError, match="passes: None then, 1 now"):
        next(iter(loader))


def test_a_full_batch_goes_on_among_other_processes() -> None:
    state = halfway(OwnedLoader(pairs(7), 7, passes=4))
    for rank in (0, 1):
        loader = OwnedLoader(pairs(7), 4, passes=4, num_replicas=2, rank=rank)
        loader.load_state_dict(state)
        assert served(loader) == [[*range(rank, 7, 2)]] * 3


def random_states() -> tuple[bytes, bytes, Any]:
    state: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), state[1].tobytes() + bytes([state[2] % 256]), random.getstate()


class Varying(Dataset[Any]):
    """Pairs of which one part of sample 3 is random."""

    def __init__(self, part: int, source: str) -> None:
        self.part, self.source = part, source

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = [torch.zeros(2), torch.tensor(float("nan"))]
        draw: dict[str, Callable[[], Any]] = {
            "torch": lambda: torch.rand(()),
            "numpy": np.random.random,
            "python": random.random,
        }
        drawn = float(draw[self.source]())
        if index == 3:
            pair[self.part] = torch.full_like(pair[self.part], drawn)
        return pair[0], pair[1]


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
@pytest.mark.parametrize("part", [0, 1])
def test_variation_is_found_and_disturbs_no_random_state(part: int, source: str) -> None:
    loader = OwnedLoader(Varying(part, source), 6)
    before = random_states()
    assert loader.variation() == f"{('input', 'target')[part]} of sample 3 differs between two readings"
    assert OwnedLoader(Varying(part, source), 3, num_replicas=2, rank=0).variation() is None  # 3 belongs to the other
    next(iter(loader))  # reads the whole share
    assert random_states() == before


def test_iterating_leaves_the_global_generators_alone() -> None:
    before = random_states()
    served(OwnedLoader(pairs(9), 2, shuffle=True, num_replicas=2, rank=0))
    assert random_states() == before


def digits(**given: Any) -> Digits:
    module = Digits(**{"train_size": 20, "batch_size": 8, **given})
    module.setup("fit")
    return module


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"task": "denoising"}, r"input of sample \d+ differs between epochs 0 and 1"),
        ({"task": "denoising", "fixed_noise": True}, None),
        ({"task": "inpainting"}, r"input of sample \d+ differs between epochs 0 and 1"),
        ({"task": "classification"}, None),
    ],
)
def test_variation_of_image_sets(given: dict[str, Any], found: str | None) -> None:
    for size in (4, 20):
        variation = OwnedLoader(digits(**given).train_dataloader().dataset, size).variation()
        if found is None:
            assert variation is None
        else:
            with pytest.raises(DataError, match=found):
                raise DataError(variation)


def test_what_cannot_be_served_is_refused() -> None:
    data = pairs(5)
    for wrong, named in [
        ({"batch_size": 0}, "OwnedLoader: batch_size=0"),
        ({"passes": 0}, "passes=0"),
        ({"drop_last": True}, "drop_last=True"),
        ({"in_order": False}, "in_order=False"),
        ({"sampler": RandomSampler(data)}, "cannot take the sampler RandomSampler"),
    ]:
        with pytest.raises(ConfigError, match=named):
            OwnedLoader(data, **wrong)  # type: ignore[arg-type]
    assert served(OwnedLoader(data, 2, shuffle=True, sampler=SequentialSampler(data))) == [[0, 1], [2, 3], [4]]
    with pytest.raises(DataError, match=r"5 sample\(s\) for 6 processes"):
        OwnedLoader(data, num_replicas=6, rank=0)
    with pytest.raises(DataError, match=r"OwnedLoader: the dataset \(TensorDataset\) is empty"):
        OwnedLoader(pairs(0))

    class Stream(IterableDataset[Any]):
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return iter([])

    class Endless(Dataset[Any]):
        def __getitem__(self, index: int) -> tuple[int, int]:
            return index, index

    wrongs: list[Any] = [Stream(), Endless(), 5]
    makers: list[Callable[[Any], OwnedLoader]] = [OwnedLoader, indexed]
    for dataset in wrongs:
        for make in makers:
            with pytest.raises(ConfigError, match=f"{type(dataset).__name__} is no dataset with a length"):
                make(dataset)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([torch.zeros(2)] * 4, "Tensor of shape"),
        ([(torch.zeros(2),) * 3] * 4, "a list of Tensor of shape .*, Tensor .*, Tensor"),
        ([{"x": torch.zeros(2), "y": 1}] * 4, "a batch is dict"),
        ([(torch.zeros(2), "label")] * 4, "a list of Tensor of shape .*, tuple"),
        ([(torch.zeros(2), None)] * 4, "NoneType"),
        ([((torch.zeros(2), torch.ones(2)), 1)] * 4, "a list of list of shape .*, Tensor"),
    ],
)
def test_what_is_no_pair_is_refused(items: Any, found: str, size: int) -> None:
    loader = OwnedLoader(items, size)
    with pytest.raises(DataError, match=f"items of list are no pairs .*{found}"):
        next(iter(loader))


def test_a_collate_function_that_loses_samples_is_refused() -> None:
    def collate(items: list[Any]) -> list[Tensor]:
        return [torch.stack([pair[part] for pair in items[:2]]) for part in (0, 1)]

    with pytest.raises(DataError, match=r"a batch of 3 sample\(s\) is a list of Tensor of shape \(2, 2\)"):
        next(iter(OwnedLoader(pairs(5), 3, collate_fn=collate)))


def test_what_is_kept_is_pinned_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: -self)
    for pin, sign in ((True, -1), (False, 1)):
        inputs, targets, indices = next(iter(OwnedLoader(pairs(3), 3, pin_memory=pin)))
        assert torch.equal(indices, sign * torch.arange(3))
        assert torch.equal(targets, 10 * indices)
        assert inputs.sum() == sign * 15


def test_arrays_and_numbers_make_pairs() -> None:
    items: Any = [(np.full((2, 2), number), 0.5 * number) for number in range(3)]
    inputs, targets, indices = next(iter(OwnedLoader(items, 3)))
    assert (inputs.shape, targets.dtype) == ((3, 2, 2), torch.float64)
    assert torch.equal(targets, indices * 0.5)


def test_a_loader_made_before_the_process_group_shares_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    early = OwnedLoader(pairs(5), 2)
    assert (len(early), served(early)) == (3, [[0, 1], [2, 3], [4]])
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    assert (len(early), served(early)) == (2, [[1, 3], []])
    assert served(indexed(pairs(5))) == [[1, 3]]
    with pytest.raises(DataError, match=r"1 sample.* for 2 processes"):
        len(OwnedLoader(pairs(1)))


class TestIndexed:
    def test_a_dataset(self) -> None:
        assert served(indexed(pairs(5))) == [[0, 1, 2, 3, 4]]
        assert indexed(pairs(5), num_replicas=2, rank=1).full_batch
        assert served(indexed(pairs(5), 2, passes=2)) == [[0, 1], [2, 3], [4]] * 2

    def test_two_tensors(self) -> None:
        inputs, targets = pairs(5).tensors
        assert served(indexed((inputs, targets), 3)) == [[0, 1, 2], [3, 4]]
        with pytest.raises(DataError, match="5 inputs and 4 targets"):
            indexed((inputs, targets[:4]))
        for wrong in ((inputs,), (inputs, 3), (inputs, targets, targets), (inputs, torch.tensor(1.0))):
            with pytest.raises(ConfigError, match="expected two tensors"):
                indexed(wrong)  # type: ignore[arg-type]

    def test_an_empty_dataset_or_batch_is_refused(self) -> None:
        with pytest.raises(DataError, match="is empty"):
            indexed(pairs(0))
        for data in (pairs(3), DataLoader(pairs(3))):
            with pytest.raises(ConfigError, match="batch_size=0"):
                indexed(data, 0)

    def test_a_loader(self) -> None:
        def collate(items: list[Any]) -> list[Tensor]:
            return [torch.stack([pair[part] for pair in items]) for part in (0, 1)]

        plain = indexed(DataLoader(pairs(5), 2, collate_fn=collate, num_workers=1, prefetch_factor=3, timeout=4))
        assert (plain.batch_size, plain.num_workers, plain.collate_fn) == (2, 1, collate)
        assert (plain.prefetch_factor, plain.timeout) == (3, 4)
        assert served(indexed(DataLoader(pairs(5), 2))) == [[0, 1], [2, 3], [4]]
        assert served(indexed(DataLoader(pairs(5), 2), 3)) == [[0, 1, 2], [3, 4]]
        shuffled = indexed(DataLoader(pairs(9), 4, shuffle=True), seed=5)
        assert served(shuffled, 1) == served(OwnedLoader(pairs(9), 4, shuffle=True, seed=5), 1)
        assert served(indexed(DataLoader(pairs(9), 4, shuffle=True), shuffle=False))[0] == [0, 1, 2, 3]

    def test_our_own_loaders(self) -> None:
        expected = served(OwnedLoader(pairs(9), 4, shuffle=True, seed=2), 3)
        assert served(indexed(ResumableLoader(pairs(9), 4, seed=2)), 3) == expected
        assert served(indexed(OwnedLoader(pairs(9), 4, shuffle=True, seed=2, passes=3)), 1)[:3] == expected
        sampler: DistributedSampler[Any] = DistributedSampler(pairs(9), 1, 0, seed=2)
        assert served(indexed(DataLoader(pairs(9), 4, sampler=sampler)), 3) == expected

        def progress() -> tuple[int, int]:
            return 3, 0

        assert served(indexed(ResumableLoader(pairs(9), 4, seed=2, progress=progress))) == expected

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"drop_last": True, "batch_size": 2}, "drop_last=True"),
            ({"batch_size": None}, "batch_sampler or by the dataset"),
            ({"batch_sampler": BatchSampler(SequentialSampler(pairs(5)), 2, False)}, "batch_sampler"),
            ({"sampler": WeightedRandomSampler([1.0] * 5, 5)}, "its sampler is a WeightedRandomSampler"),
            ({"sampler": RandomSampler(pairs(5), replacement=True)}, "some samples twice or never"),
            ({"sampler": RandomSampler(pairs(5), num_samples=3)}, "some samples twice or never"),
        ],
    )
    def test_what_cannot_be_taken_over_is_refused(self, given: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigError, match=rf"(?s){named}.*indexed\(loader.dataset"):
            indexed(DataLoader(pairs(5), **given))


class Owning(L.LightningModule):
    """One linear layer that owns samples: a variable for each of them takes part in the loss."""

    owns_samples = True

    def __init__(self, samples: int = 60) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(64, 64)
        self.register_buffer("kept", torch.zeros(samples))
        self.seen: list[tuple[int, int, list[int], float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets, indices = batch
        self.seen.append((self.current_epoch, batch_idx, indices.tolist(), float(inputs.sum())))
        loader = self.trainer.train_dataloader
        assert isinstance(loader, OwnedLoader)
        assert loader.sample_indices(batch_idx) == indices.tolist()
        errors = (self.layer(inputs.flatten(1)) - targets.flatten(1)).square().mean(1)
        assert isinstance(self.kept, Tensor)
        self.kept[indices] = 0.9 * self.kept[indices] + errors.detach()
        loss: Tensor = ((1 + self.kept[indices]) * errors).sum() / 16
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def trainer(folder: Path, **given: Any) -> L.Trainer:
    plain: dict[str, Any] = {"accelerator": "cpu", "logger": False, "limit_val_batches": 0}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        **{**plain, **quiet, "max_epochs": 2, "enable_checkpointing": False, **given}, default_root_dir=folder
    )


def every_step(folder: Path) -> dict[str, Any]:
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    return {"callbacks": [keep], "enable_checkpointing": True}


def owning_digits(batch_size: int = 16, passes: int = 1, **given: Any) -> Digits:
    return Digits(batch_size=batch_size, train_size=60, task="denoising", passes=passes, **given)


@pytest.mark.parametrize(("size", "passes"), [(16, 1), (16, 2), (60, 4), pytest.param(7, 3, marks=pytest.mark.slow)])
def test_a_trainer_resumes_bit_for_bit(tmp_path: Path, size: int, passes: int) -> None:
    straight = Owning()
    trainer(tmp_path, **every_step(tmp_path)).fit(straight, owning_digits(size, passes))
    per_epoch = -(-60 // size) * passes
    assert [seen[:2] for seen in straight.seen] == [(e, b) for e in (0, 1) for b in range(per_epoch)]
    for step in range(1, 2 * per_epoch):
        resumed = Owning()
        path = tmp_path / f"step={step}.ckpt"
        trainer(tmp_path).fit(resumed, owning_digits(size, passes), ckpt_path=path, weights_only=True)
        assert resumed.seen == straight.seen[step:]
        for name, value in straight.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (step, name)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_the_first_batches(tmp_path: Path) -> None:
    for fit in ({"datamodule": owning_digits()}, {"train_dataloaders": OwnedLoader(digits_set(), 16, shuffle=True)}):
        model = Owning()
        trainer(tmp_path, overfit_batches=2).fit(model, **fit)
        assert [seen[2] for seen in model.seen] == [[*range(16)], [*range(16, 32)]] * 2


def digits_set() -> Dataset[Any]:
    module = owning_digits(fixed_noise=True)
    module.setup("fit")
    return module.train_dataloader().dataset


def test_a_loader_by_itself_is_told_of_epochs(tmp_path: Path) -> None:
    model, loader = Owning(), OwnedLoader(digits_set(), 16, shuffle=True, seed=1)
    trainer(tmp_path).fit(model, loader)
    again = OwnedLoader(digits_set(), 16, shuffle=True, seed=1)
    expected = []
    for epoch in (0, 1):
        again.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected += [indices.tolist() for _, _, indices in again]
    assert [seen[2] for seen in model.seen] == expected


def test_the_data_modules_serve_what_the_model_asks_for(tmp_path: Path) -> None:
    class Plain(Owning):
        owns_samples = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layer(inputs.flatten(1)), targets.flatten(1))

    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Plain(), owning_digits())
    assert type(fitted.train_dataloader) is ResumableLoader
    with pytest.raises(ConfigError, match=r"Digits: passes=2, expected 1, except for a model that owns samples"):
        digits(passes=2).train_dataloader()
    with pytest.raises(ConfigError, match="passes=0, expected at least 1"):
        Digits(passes=0)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(Owning(), owning_digits(passes=2, seed=4))
    loader = fitted.train_dataloader
    assert isinstance(loader, OwnedLoader)
    assert (loader.batch_size, loader.passes, loader.seed, len(loader)) == (16, 2, 4, 8)


SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch.strategies import DDPStrategy
sys.path.insert(0, sys.argv[2])
from test_owned_loader import Owning, every_step, owning_digits, trainer

class Gathering(Owning):
    \"\"\"Sums gradients over processes by itself, so that unequal batches weigh as they should.\"\"\"

    def __init__(self):
        super().__init__()
        self.double()

    def training_step(self, batch, batch_idx):
        inputs, targets, indices = batch
        assert isinstance(self.trainer.train_dataloader.sampler, torch.utils.data.DistributedSampler)
        return self.trainer.world_size * super().training_step([inputs.double(), targets.double(), indices], batch_idx)

    def on_train_end(self):
        torch.save(self.seen, Path(self.trainer.default_root_dir) / f"seen-{self.trainer.global_rank}.pt")

def fit(folder, devices, size, ckpt_path=None):
    strategy = DDPStrategy(start_method="fork", broadcast_buffers=False) if devices > 1 else "auto"
    run = trainer(folder, **every_step(folder), devices=devices, strategy=strategy)
    resumed = {"ckpt_path": ckpt_path, "weights_only": True} if ckpt_path else {}
    run.fit(Gathering(), owning_digits(size, passes=2), **resumed)

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for size in (2, 30):  # 15 global batches with empty local ones; the full batch
        one, two, again = (folder / f"{name}-{size}" for name in ("one", "two", "again"))
        for path in (one, two, again):
            path.mkdir()
        fit(one, 1, 2 * size)
        fit(two, 2, size)
        whole = torch.load(one / "seen-0.pt")
        parts = [torch.load(two / f"seen-{rank}.pt") for rank in (0, 1)]
        for rank, part in enumerate(parts):
            assert [seen[:2] for seen in part] == [seen[:2] for seen in whole]
            assert [seen[2] for seen in part] == [[i for i in seen[2] if i % 2 == rank] for seen in whole]
        assert any(seen[2] == [] for seen in parts[0]) == (size == 2)
        end = lambda path: torch.load(path / f"step={len(whole)}.ckpt", weights_only=True)["state_dict"]
        torch.testing.assert_close(end(two)["layer.weight"], end(one)["layer.weight"], rtol=1e-10, atol=1e-12)
        fit(again, 2, size, ckpt_path=one / f"step={len(whole) // 4 + 1}.ckpt")  # from one process to two
        resumed = [torch.load(again / f"seen-{rank}.pt") for rank in (0, 1)]
        for rank, part in enumerate(parts):
            assert resumed[rank] == part[len(whole) // 4 + 1 :]
    print("all equal")
"""


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(Path(__file__).parent)]
    env = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=env | {"OMP_NUM_THREADS": "1"}
    )
    assert "all equal" in done.stdout, done.stderr[-3000:]
