"""The base of the data modules: settings, their checks, seeded splits and the loaders."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor
from torch.utils.data import DataLoader

from morphlightning.data.corruption import TASKS, TRAINING, Corruption, Task
from morphlightning.data.loader import ResumableLoader, progress_of
from morphlightning.data.owned import OwnedLoader
from morphlightning.data.sets import ImageSet
from morphlightning.errors import ConfigError, DataError

Batch = list[Tensor]
_PURPOSES = {"split": 2**32, "subset": 2**32 + 1}  # random streams apart from those of the noise


class ImageDataModule(L.LightningDataModule, ABC):
    """Serves batches ``(input, target)`` of images, float32 of shape (B, C, H, W) with clean values in [0, 1].

    ========================  ==================================================  =======================
    task                      input                                               target
    ========================  ==================================================  =======================
    ``"classification"``      the image                                           its label, int64 (B,)
    ``"denoising"``           the image plus Gaussian noise, not clipped          the image
    ``"inpainting"``          the image with missing pixels set to 0              the image
    ``"reconstruction"``      the image                                           the image
    ========================  ==================================================  =======================

    The order of training depends on (seed, epoch); the noise of a sample on (seed, sample) in evaluation and on
    (seed, epoch, sample) in training. Nothing depends on the number of workers or processes: the k-th batches of W
    processes are together the k-th batch of one process with W times the batch size (where the last batch is not
    full, DistributedSampler repeats up to W - 1 samples). A run resumed from a checkpoint, at an epoch's end or inside
    it, goes on bit for bit.

    Models that own samples get batches ``(input, target, indices)``, without repeated samples, see
    :class:`OwnedLoader`; where the noise of training is not fixed, it then changes from pass to pass, but never in a
    full batch.

    Args:
        batch_size: Samples of one batch of one process.
        val_fraction: Share of the training data that is set aside for validation, in [0, 1); 0 for none.
        seed: Seed of the split, the order and the noise; not negative.
        num_workers: Worker processes of each loader; 0 loads in the process itself, which is best for small images.
        task: What the pairs are, see the table.
        noise: Standard deviation of the noise for denoising, in units of the images (white is 1).
        missing: Probability that a pixel is missing for inpainting, in [0, 1).
        fixed_noise: Give a training sample the same noise in every epoch.
        train_size: Use at most so many training samples, chosen by the seed; None for all.
        pin_memory: Let the loaders return page-locked memory, for quicker copies to a CUDA device.
        passes: How often an epoch goes through the training data; other than 1 only for models that own samples.

    Attributes:
        in_shape: Shape (C, H, W) of an image.
        num_classes: Number of classes; 0 where images have no labels.
        class_names: Names of the classes, in the order of the labels.

    Raises:
        ConfigError: A setting is out of its range; the message names it.
    """

    in_shape: tuple[int, int, int]
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    eval_batch_size: ClassVar[int | None] = None  # None: as in training

    def __init__(
        self,
        *,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        task: Task = "classification",
        noise: float = 0.3,
        missing: float = 0.25,
        fixed_noise: bool = False,
        train_size: int | None = None,
        pin_memory: bool = False,
        passes: int = 1,
    ) -> None:
        super().__init__()
        # logger=False: a model with a hyperparameter of the same name and another value would stop the Trainer
        self.save_hyperparameters(logger=False)
        self.task, self.missing = task, missing  # a subclass that fixes them has no such hyperparameters
        self._check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        self._check(0 <= val_fraction < 1, "val_fraction", val_fraction, "a share in [0, 1)")
        self._check(0 <= seed < 2**63, "seed", seed, "an integer in [0, 2**63)")
        self._check(num_workers >= 0, "num_workers", num_workers, "0 or more")
        self._check(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
        self._check(noise >= 0 and math.isfinite(noise), "noise", noise, "a finite standard deviation, 0 or more")
        self._check(0 <= missing < 1, "missing", missing, "a probability in [0, 1)")
        self._check(train_size is None or train_size >= 1, "train_size", train_size, "None or at least 1")
        self._check(passes >= 1, "passes", passes, "at least 1")
        self._sets: dict[str, ImageSet | None] = {}

    @abstractmethod
    def training_sets(self) -> tuple[ImageSet, ImageSet | None]:
        """Build the training and the validation set (None for none)."""

    @abstractmethod
    def test_set(self) -> ImageSet:
        """Build the test set."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data that a stage needs, once.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all.

        Raises:
            DataError: The data are missing, damaged or too few.
        """
        if stage in (None, "fit", "validate") and "train" not in self._sets:
            self._sets["train"], self._sets["val"] = self.training_sets()
        if stage in (None, "test", "predict") and "test" not in self._sets:
            self._sets["test"] = self.test_set()

    def train_dataloader(self) -> ResumableLoader[Batch]:
        """Load the training set in the order of (seed, epoch); stateful, so that a run resumes inside an epoch.

        Where the model that the trainer trains owns samples (its ``owns_samples`` is true), this is an
        :class:`OwnedLoader`, whose batches carry the samples' indices too.

        Raises:
            ConfigError: ``passes`` is not 1 and the model owns no samples.
        """
        trainer, passes = self.trainer, self.hparams["passes"]
        owns = trainer is not None and getattr(trainer.lightning_module, "owns_samples", False)
        self._check(owns or passes == 1, "passes", passes, "1, except for a model that owns samples (lifted training)")
        settings = self._loader_settings() | ({"passes": passes} if owns else {})
        if trainer is not None:
            settings |= {"progress": partial(progress_of, trainer), **(trainer.distributed_sampler_kwargs or {})}
        return (OwnedLoader if owns else ResumableLoader)(
            self._built("train", "fit"),  # type: ignore[arg-type]
            self.hparams["batch_size"],
            shuffle=True,
            seed=self.hparams["seed"],
            **settings,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Load the validation set in its order; an empty list where there is none."""
        return [] if self._built("val", "fit") is None else self._evaluation("val", "fit")

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the test set in its order."""
        return self._evaluation("test", "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Load the test set in its order."""
        return self._evaluation("test", "predict")

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        """Split ``count`` samples by the seed.

        Returns:
            Indices for training and for validation, disjoint, int64.

        Raises:
            DataError: No sample is left for training.
        """
        order = self.permutation(count, purpose="split")
        fraction = self.hparams["val_fraction"]
        for_validation = max(1, round(count * fraction)) if fraction else 0
        if for_validation >= count:
            raise DataError(
                f"{type(self).__name__}: val_fraction={fraction} leaves none of {count} sample(s) for training; "
                "lower it, or add data"
            )
        return order[for_validation:], order[:for_validation]

    def permutation(self, count: int, purpose: Literal["split", "subset"]) -> Tensor:
        """Permute ``range(count)`` by the seed, int64."""
        generator = Generator(Philox(key=np.array([self.hparams["seed"], _PURPOSES[purpose]], dtype=np.uint64)))
        return torch.from_numpy(generator.permutation(count))

    def corruption(self, train: bool, stream: int = TRAINING) -> Corruption:
        """Make what turns clean images into inputs, for training or for evaluation."""
        settings = self.hparams
        return Corruption(
            task=self.task,
            noise=settings["noise"],
            missing=self.missing,
            seed=settings["seed"],
            stream=stream,
            fixed=settings["fixed_noise"] or not train,
        )

    def _evaluation(self, name: str, stage: str) -> DataLoader[Any]:
        # the generator keeps the loader from drawing its seed from torch's global one
        batch_size = self.eval_batch_size or self.hparams["batch_size"]
        dataset = self._built(name, stage)
        assert dataset is not None
        return DataLoader(dataset, batch_size=batch_size, generator=torch.Generator(), **self._loader_settings())

    def _built(self, name: str, stage: str) -> ImageSet | None:
        if name not in self._sets:
            raise ConfigError(
                f"{type(self).__name__}: the data are not read yet; call setup({stage!r}) first (a Trainer does it)"
            )
        return self._sets[name]

    def _loader_settings(self) -> dict[str, Any]:
        workers = self.hparams["num_workers"]
        return {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": self.hparams["pin_memory"]}

    def _check(self, fits: bool, name: str, given: object, expected: str) -> None:
        if not fits:
            raise ConfigError(f"{type(self).__name__}: {name}={given!r}, expected {expected}")
