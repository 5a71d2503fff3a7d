"""Points of toy densities: what they are, and that they depend on the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphlightning.data import ToyDensity
from morphlightning.data.toy import DENSITIES
from morphlightning.errors import ConfigError

densities = pytest.mark.parametrize("density", DENSITIES)


@densities
def test_points_depend_on_the_seed_and_the_part(density: str) -> None:
    def points(seed: int, part: str) -> torch.Tensor:
        return ToyDensity(density, seed=seed, train_size=50, val_size=50).points(part)

    assert torch.equal(points(0, "train"), points(0, "train"))
    assert not torch.equal(points(0, "train"), points(1, "train"))
    assert not torch.equal(points(0, "train"), points(0, "val"))


@densities
def test_points_are_centred_and_of_one_size(density: str) -> None:
    points = ToyDensity(density, train_size=20000).points("train")
    assert (points.shape, points.dtype) == ((20000, 2), torch.float32)
    assert points.mean(0).abs().max() < 0.15
    assert 0.6 < points.std() < 1.8
    assert points.abs().max() < 6


def test_the_checkerboard_is_one() -> None:
    points = ToyDensity("checkerboard", train_size=16000).points("train")
    fields = (points + 2).floor().long()
    assert fields.min() == 0
    assert fields.max() == 3
    assert ((fields[:, 0] + fields[:, 1]) % 2 == 0).all()
    counts = torch.bincount(fields[:, 0] * 4 + fields[:, 1])
    assert counts[counts > 0].min() > 1800


def test_batches_and_their_order() -> None:
    data = ToyDensity(batch_size=30, train_size=100, val_size=40, seed=3)
    loader = data.train_dataloader()
    batches = list(loader)
    assert [tuple(batch[0].shape) for batch in batches] == [(30, 2)] * 3 + [(10, 2)]
    assert torch.equal(torch.cat([b for (b,) in batches]).sort(0).values, data.points("train").sort(0).values)
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(next(iter(loader))[0], batches[0][0])
    (first, _) = data.val_dataloader()
    assert torch.equal(first[0], data.points("val")[:30])
    assert len(data.test_dataloader().dataset) == 10000
    assert ToyDensity(val_size=0).val_dataloader() == []


def test_workers_change_nothing() -> None:
    plain, worked = (list(ToyDensity(batch_size=20, train_size=50, num_workers=n).train_dataloader()) for n in (0, 1))
    assert all(torch.equal(a, b) for (a,), (b,) in zip(plain, worked, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": "spirals"},
        {"batch_size": 0},
        {"train_size": 0},
        {"val_size": -1},
        {"test_size": 0},
        {"seed": -1},
        {"num_workers": -1},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ToyDensity(**wrong)
