"""Two-dimensional densities to try generative models on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from morphlightning.data.loader import ResumableLoader, progress_of
from morphlightning.errors import ConfigError

Points = NDArray[np.float64]
_PARTS = ("train", "val", "test")


def two_moons(random: Generator, n: int) -> Points:
    """Two half circles of radius 1.3 that clasp each other, with Gaussian noise of 0.1."""
    angle = random.uniform(0, math.pi, n)
    side = np.where(random.random(n) < 0.5, 1.0, -1.0)
    moons = np.stack([side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25)], 1)
    points: Points = 1.3 * moons + 0.1 * random.standard_normal((n, 2))
    return points


def rings(random: Generator, n: int) -> Points:
    """Circles of radius 0.6, 1.2, 1.8 and 2.4, as many points on each, with Gaussian noise of 0.06."""
    angle, radius = random.uniform(0, 2 * math.pi, n), 0.6 * random.integers(1, 5, n)
    circles = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    points: Points = circles + 0.06 * random.standard_normal((n, 2))
    return points


def checkerboard(random: Generator, n: int) -> Points:
    """Uniform on every other field of a board of 4 x 4 on [-2, 2]^2; its entropy is log 8."""
    column, row = random.integers(0, 4, n), random.integers(0, 2, n)
    corner = np.stack([column, 2 * row + column % 2], 1) - 2.0
    return corner + random.random((n, 2))


def pinwheel(random: Generator, n: int) -> Points:
    """Five arms that turn with the distance from the centre."""
    along = 1.0 + 0.3 * random.standard_normal(n)
    across = 0.05 * random.standard_normal(n)
    angle = 2 * math.pi / 5 * random.integers(0, 5, n) + 0.25 * np.exp(along)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(n, 2, 2)
    points: Points = 1.6 * np.einsum("nij,nj->ni", turn, np.stack([along, across], 1))
    return points


def eight_gaussians(random: Generator, n: int) -> Points:
    """Gaussians of standard deviation 0.2 at eight places on the circle of radius 2."""
    angle = math.pi / 4 * random.integers(0, 8, n)
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * random.standard_normal((n, 2))


DENSITIES: dict[str, Callable[[Generator, int], Points]] = {
    draw.__name__: draw for draw in (two_moons, rings, checkerboard, pinwheel, eight_gaussians)
}


class PointSet(Dataset[Tensor]):
    """Points (n, dim), fetched a whole batch at a time."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Tensor:
        return self.points[index]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self.points[list(indices)]


class ToyDensity(L.LightningDataModule):
    """Points of a density in the plane; batches are ``[points]``, float32 of shape (B, 2).

    The points depend on (density, seed) alone, their order in training on (seed, epoch). As with our other data modules
    the k-th batches of W processes are together the k-th batch of one process with W times the batch size, and a run
    resumed from a checkpoint goes on bit for bit.

    Args:
        density: ``"two_moons"``, ``"rings"``, ``"checkerboard"``, ``"pinwheel"`` or ``"eight_gaussians"``.
        batch_size: Points of one batch of one process.
        train_size: Points to train on.
        val_size: Points to validate on; 0 for none.
        test_size: Points to test on.
        seed: Seed of the points and of their order; not negative.
        num_workers: Worker processes of each loader.

    Raises:
        ConfigError: A setting is out of its range; the message names it.
    """

    in_shape = (2,)

    def __init__(
        self,
        density: str = "two_moons",
        *,
        batch_size: int = 256,
        train_size: int = 20000,
        val_size: int = 2000,
        test_size: int = 10000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for fits, what in (
            (density in DENSITIES, f"density={density!r}, expected one of {', '.join(DENSITIES)}"),
            (batch_size >= 1, f"batch_size={batch_size}, expected at least 1"),
            (train_size >= 1, f"train_size={train_size}, expected at least 1"),
            (val_size >= 0, f"val_size={val_size}, expected 0 or more"),
            (test_size >= 1, f"test_size={test_size}, expected at least 1"),
            (0 <= seed < 2**63, f"seed={seed}, expected an integer in [0, 2**63)"),
            (num_workers >= 0, f"num_workers={num_workers}, expected 0 or more"),
        ):
            if not fits:
                raise ConfigError(f"ToyDensity: {what}")

    def points(self, part: str) -> Tensor:
        """The points of ``"train"``, ``"val"`` or ``"test"``, float32 (n, 2)."""
        random = Generator(Philox(key=np.array([self.hparams["seed"], _PARTS.index(part)], dtype=np.uint64)))
        return torch.from_numpy(DENSITIES[self.hparams["density"]](random, self.hparams[f"{part}_size"])).float()

    def train_dataloader(self) -> ResumableLoader[list[Tensor]]:
        """Load the training points in the order of (seed, epoch); stateful, so that a run resumes inside an epoch."""
        settings = self._loader_settings()
        if self.trainer is not None:
            settings |= {"progress": partial(progress_of, self.trainer)}
            settings |= self.trainer.distributed_sampler_kwargs or {}
        dataset: Any = PointSet(self.points("train"))
        return ResumableLoader(dataset, self.hparams["batch_size"], seed=self.hparams["seed"], **settings)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Load the points for validation; an empty list where there are none."""
        return self._evaluation("val") if self.hparams["val_size"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the points for testing."""
        return self._evaluation("test")

    def _evaluation(self, part: str) -> DataLoader[Any]:
        # the generator keeps the loader from drawing its seed from torch's global one
        dataset, generator = PointSet(self.points(part)), torch.Generator()
        return DataLoader(dataset, self.hparams["batch_size"], generator=generator, **self._loader_settings())

    def _loader_settings(self) -> dict[str, Any]:
        workers = self.hparams["num_workers"]
        return {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": _as_batch}


def _as_batch(points: Tensor) -> list[Tensor]:
    return [points]
