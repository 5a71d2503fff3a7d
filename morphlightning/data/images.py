"""Labelled images of one size: scikit-learn's digits, the MNIST family, CIFAR-10."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from morphlightning.data.base import ImageDataModule
from morphlightning.data.corruption import TEST, Task
from morphlightning.data.files import SUFFIXES, find_file, read_cifar10, read_idx
from morphlightning.data.sets import LabelledImages
from morphlightning.errors import ConfigError, DataError
from morphlightning.vision import import_torchvision


class LabelledDataModule(ImageDataModule):
    """Base of data modules whose images are read whole into memory, one byte a value."""

    white: ClassVar[int] = 255  # the byte that stands for 1.0

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test part: images (N, C, H, W) uint8 and labels (N,)."""

    def training_sets(self) -> tuple[LabelledImages, LabelledImages | None]:
        """Split the training part by the seed."""
        images, labels = self._checked(train=True)
        train, val = self.split(len(images))
        train = train[: self.hparams["train_size"]]
        train_set = LabelledImages(images, labels, train, self.white, self.corruption(train=True))
        if not len(val):
            return train_set, None
        return train_set, LabelledImages(images, labels, val, self.white, self.corruption(train=False))

    def test_set(self) -> LabelledImages:
        """Take the whole test part."""
        images, labels = self._checked(train=False)
        return LabelledImages(
            images, labels, torch.arange(len(images)), self.white, self.corruption(train=False, stream=TEST)
        )

    def _checked(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.read(train)
        name = f"{type(self).__name__} ({'training' if train else 'test'} part)"
        if tuple(images.shape[1:]) != self.in_shape:
            raise DataError(f"{name}: images of shape {tuple(images.shape[1:])}, expected {self.in_shape}")
        if len(images) != len(labels):
            raise DataError(f"{name}: {len(images)} images and {len(labels)} labels; the files do not belong together")
        if int(labels.max()) >= self.num_classes:
            raise DataError(f"{name}: a label {int(labels.max())}, expected 0 to {self.num_classes - 1}")
        return images, labels.long()


class Digits(LabelledDataModule):
    """The handwritten digits that come with scikit-learn: 1797 images of shape (1, 8, 8), nothing to download.

    The test set is the last fifth of the collection (359 images), the same for every seed; the rest is split into
    training and validation by the seed. The settings are those of :class:`ImageDataModule`.

    Source: E. Alpaydin, C. Kaynak: Optical recognition of handwritten digits, UCI Machine Learning Repository, 1998.
    """

    in_shape = (1, 8, 8)
    num_classes = 10
    class_names = tuple("0123456789")
    white = 16

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Take the first four fifths or the last fifth of the collection."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
        labels = torch.from_numpy(digits.target)
        border = len(images) - len(images) // 5
        part = slice(None, border) if train else slice(border, None)
        return images[part], labels[part]


class DownloadableDataModule(LabelledDataModule):
    """Base of data modules over files in a folder, which torchvision downloads where they are missing.

    Args:
        data_dir: The folder with the files, or where to put them; the docstring of the data set names the files.
        download: Download what is missing, in ``prepare_data``; needs torchvision. Files that are there are read as
            they are, without torchvision and without a connection.
        batch_size: See :class:`ImageDataModule`, as for all that follow.
        val_fraction: See there.
        seed: See there.
        num_workers: See there.
        task: See there.
        noise: See there.
        missing: See there.
        fixed_noise: See there.
        train_size: See there.
        pin_memory: See there.
        passes: See there.
    """

    def __init__(
        self,
        data_dir: str | Path = "data",
        *,
        download: bool = True,
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
        data_dir = str(data_dir)  # checkpoints hold plain values
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            seed=seed,
            num_workers=num_workers,
            task=task,
            noise=noise,
            missing=missing,
            fixed_noise=fixed_noise,
            train_size=train_size,
            pin_memory=pin_memory,
            passes=passes,
        )

    @property
    @abstractmethod
    def folders(self) -> list[Path]:
        """Folders that are searched, in this order."""

    @abstractmethod
    def file_names(self, train: bool) -> list[str]:
        """Files of the training or the test part, without .gz or .xz."""

    @property
    def data_dir(self) -> Path:
        """The folder that the user named."""
        return Path(self.hparams["data_dir"]).expanduser()

    def prepare_data(self) -> None:
        """Download what is missing, where that is allowed; a Trainer calls this on one process only.

        Raises:
            DataError: Files are missing and the download failed, or torchvision is not there to do it.
        """
        if self.hparams["download"] and not (self.present(train=True) and self.present(train=False)):
            self._download()

    def present(self, train: bool) -> bool:
        """Whether the files of this part are there."""
        return all(find_file(self.folders, name) for name in self.file_names(train))

    def locate(self, train: bool) -> list[Path]:
        """Find the files of this part.

        Raises:
            DataError: One is missing; the message says what was looked for, where, and what to do.
        """
        paths = [find_file(self.folders, name) for name in self.file_names(train)]
        if None in paths:
            raise DataError(self._missing_message(train, "They are not there and nothing has downloaded them."))
        return [path for path in paths if path is not None]

    def _download(self) -> None:
        name = type(self).__name__
        try:
            dataset = getattr(import_torchvision().datasets, self._torchvision_name)
            for train in (True, False):
                dataset(str(self.data_dir), train=train, download=True)
        except (ConfigError, OSError, RuntimeError) as error:
            reason = f"The download of {name} by torchvision failed ({type(error).__name__}: {error})."
            raise DataError(self._missing_message(not self.present(train=True), reason)) from error

    _torchvision_name: ClassVar[str]

    def _missing_message(self, train: bool, reason: str) -> str:
        names = ", ".join(name for name in self.file_names(train) if not find_file(self.folders, name))
        return (
            f"{type(self).__name__}: looked for {names} (also {' and '.join(SUFFIXES[1:])}) in "
            f"{', '.join(str(folder) for folder in self.folders)}. {reason} "
            f"Put the files there, or set data_dir (now {self.hparams['data_dir']!r}) to their folder, or let "
            f"prepare_data() fetch them with download=True (now download={self.hparams['download']}), which needs "
            "torchvision and a connection."
        )


class MNIST(DownloadableDataModule):
    """Handwritten digits: 60000 training and 10000 test images of shape (1, 28, 28), ten classes.

    Files: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``,
    ``t10k-labels-idx1-ubyte``, each plain, .gz or .xz, in ``<data_dir>/MNIST/raw`` (where torchvision puts them) or in
    ``data_dir`` itself. See :class:`DownloadableDataModule` and :class:`ImageDataModule` for the settings.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, 1998.
    """

    in_shape = (1, 28, 28)
    num_classes = 10
    class_names = tuple("0123456789")
    _torchvision_name = "MNIST"

    @property
    def folders(self) -> list[Path]:
        """``<data_dir>/<name>/raw`` and ``data_dir``."""
        return [self.data_dir / self._torchvision_name / "raw", self.data_dir]

    def file_names(self, train: bool) -> list[str]:
        """Images and labels of the part."""
        part = "train" if train else "t10k"
        return [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the IDX files of the part."""
        images, labels = self.locate(train)
        return read_idx(images, ndim=3)[:, None], read_idx(labels, ndim=1)


class FashionMNIST(MNIST):
    """Articles of clothing in the format of :class:`MNIST`, in ``<data_dir>/FashionMNIST/raw`` or ``data_dir``.

    The files have the same names as MNIST's: keep each data set in a folder of its own.

    Source: H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv 1708.07747.
    """

    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    _torchvision_name = "FashionMNIST"


class KMNIST(MNIST):
    """Cursive Japanese characters in the format of :class:`MNIST`, in ``<data_dir>/KMNIST/raw`` or ``data_dir``.

    The files have the same names as MNIST's: keep each data set in a folder of its own.

    Source: T. Clanuwat et al.: Deep learning for classical Japanese literature, arXiv 1812.01718.
    """

    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    _torchvision_name = "KMNIST"


class CIFAR10(DownloadableDataModule):
    """Small colour photographs: 50000 training and 10000 test images of shape (3, 32, 32), ten classes.

    Files: the binary version, ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, each plain, .gz or
    .xz, in ``<data_dir>/cifar-10-batches-bin`` or ``data_dir``; or the Python version in
    ``<data_dir>/cifar-10-batches-py``, which torchvision downloads. That one holds pickles, so it is read through
    torchvision, which compares checksums first. See :class:`ImageDataModule` for the settings.

    Source: A. Krizhevsky: Learning multiple layers of features from tiny images, 2009.
    """

    in_shape = (3, 32, 32)
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    _torchvision_name = "CIFAR10"

    @property
    def folders(self) -> list[Path]:
        """``<data_dir>/cifar-10-batches-bin`` and ``data_dir``."""
        return [self.data_dir / "cifar-10-batches-bin", self.data_dir]

    def file_names(self, train: bool) -> list[str]:
        """Batches of the part, binary version."""
        return [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]

    def present(self, train: bool) -> bool:
        """Whether the files of this part are there, in the binary or the Python version."""
        return super().present(train) or self._python_version.is_dir()

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the binary batches of the part; the Python version through torchvision."""
        if not super().present(train) and self._python_version.is_dir():
            return self._read_python_version(train)
        parts = [read_cifar10(path) for path in self.locate(train)]
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    @property
    def _python_version(self) -> Path:
        return self.data_dir / "cifar-10-batches-py"

    def _read_python_version(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            dataset = import_torchvision().datasets.CIFAR10(str(self.data_dir), train=train, download=False)
        except RuntimeError as error:
            raise DataError(
                f"CIFAR10: the files in {self._python_version} are incomplete or damaged ({error}); delete them and "
                "fetch them again with download=True"
            ) from error
        return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)
