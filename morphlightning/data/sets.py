"""Datasets of images in memory, stored as bytes and served as float32 in [0, 1] with their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphlightning.data.corruption import Corruption

Key = int | tuple[int, int]
"""A sample's index, or (epoch, index) where the noise is to change from epoch to epoch."""


class ImageSet(Dataset[tuple[Tensor, ...]], ABC):
    """Pairs ``(input, target)``, fetched a whole batch at a time; triples with the noise level where levels differ.

    A key is an index or a pair (epoch, index). The epoch travels with the index because a worker process that lives on
    through several epochs would not hear of a new one otherwise; an index alone means epoch 0.
    """

    def __init__(self, corruption: Corruption) -> None:
        self.corruption = corruption

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def clean(self, indices: Sequence[int]) -> Tensor:
        """Serve the clean images of these samples, float32 of shape (B, C, H, W) in [0, 1]."""

    def targets(self, indices: Sequence[int], clean: Tensor) -> Tensor:
        """Serve the targets of these samples: the clean images, unless a subclass has labels."""
        return clean

    def samples(self, indices: Sequence[int]) -> Sequence[int]:
        """Tell which numbers the noise of these samples is drawn by."""
        return indices

    def at_epoch(self, epoch: int, index: int) -> Key:
        """Make the key of a sample as training sees it in an epoch."""
        return epoch, index

    def __getitem__(self, key: Key) -> tuple[Tensor, ...]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, ...]]:
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        epochs, indices = [epoch for epoch, _ in pairs], [index for _, index in pairs]
        clean = self.clean(indices)
        samples = self.samples(indices)
        parts = [self.corruption(clean, epochs, samples), self.targets(indices, clean)]
        if isinstance(self.corruption.noise, tuple):
            parts.append(self.corruption.levels(epochs, samples))
        return list(zip(*parts, strict=True))


class LabelledImages(ImageSet):
    """A part of a labelled collection of equal-sized images.

    Args:
        images: The whole collection, uint8 of shape (N, C, H, W); shared by its parts, not copied.
        labels: Class indices, int64 of shape (N,); the targets when the task is classification.
        rows: The rows of the collection that belong to this part, int64.
        white: The byte that stands for 1.0.
        corruption: What makes the inputs; it counts samples by their row, so a sample keeps its noise in any split.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor, white: int, corruption: Corruption) -> None:
        super().__init__(corruption)
        self.images, self.labels, self.rows, self.white = images, labels, rows, white

    def __len__(self) -> int:
        return len(self.rows)

    def clean(self, indices: Sequence[int]) -> Tensor:
        """Serve the clean images of these samples, float32 of shape (B, C, H, W) in [0, 1]."""
        return self.images[self.rows[list(indices)]].float().div_(self.white)

    def targets(self, indices: Sequence[int], clean: Tensor) -> Tensor:
        """Serve the labels for classification, otherwise the clean images."""
        return self.labels[self.rows[list(indices)]] if self.corruption.task == "classification" else clean

    def samples(self, indices: Sequence[int]) -> list[int]:
        """Tell the rows of these samples in the whole collection."""
        rows: list[int] = self.rows[list(indices)].tolist()
        return rows


class Patches(ImageSet):
    """Square patches of images of any size.

    Args:
        images: The images, each uint8 of shape (C, H, W).
        corners: All patches, int64 of shape (P, 3), see :func:`patch_corners`.
        rows: The patches to use, int64: row + P * symmetry, with a row of ``corners`` and one of the eight symmetries
            of the square: symmetry % 4 quarter turns, mirrored before from symmetry 4 on.
        patch_size: Side of a patch, in pixels.
        corruption: What makes the inputs; it counts samples by their entry in ``rows``.
    """

    def __init__(
        self, images: Sequence[Tensor], corners: Tensor, rows: Tensor, patch_size: int, corruption: Corruption
    ) -> None:
        super().__init__(corruption)
        self.images, self.corners, self.rows, self.patch_size = images, corners, rows, patch_size

    def __len__(self) -> int:
        return len(self.rows)

    def clean(self, indices: Sequence[int]) -> Tensor:
        """Serve the clean patches, float32 of shape (B, C, patch_size, patch_size) in [0, 1]."""
        size = self.patch_size
        rows = self.rows[list(indices)]
        symmetries = (rows // len(self.corners)).tolist()
        corners = self.corners[rows % len(self.corners)].tolist()
        patches = [self.images[number][:, y : y + size, x : x + size] for number, y, x in corners]
        patches = [turned(patch, symmetry) for patch, symmetry in zip(patches, symmetries, strict=True)]
        return torch.stack(patches).float().div_(255)

    def samples(self, indices: Sequence[int]) -> list[int]:
        """Tell the rows of these samples among all patches."""
        rows: list[int] = self.rows[list(indices)].tolist()
        return rows


def turned(image: Tensor, symmetry: int) -> Tensor:
    """Apply one of the eight symmetries of the square to an image (C, S, S), 0 the identity; see :class:`Patches`."""
    if not symmetry:
        return image
    return torch.rot90(image.flip(-1) if symmetry >= 4 else image, symmetry % 4, (-2, -1))


def patch_corners(images: Sequence[Tensor], patch_size: int, stride: int) -> Tensor:
    """List the patches of a regular grid over each image: rows (image, top, left), int64 of shape (P, 3)."""
    corners = [
        torch.cartesian_prod(
            torch.tensor([number]),
            torch.arange(0, image.shape[1] - patch_size + 1, stride),
            torch.arange(0, image.shape[2] - patch_size + 1, stride),
        )
        for number, image in enumerate(images)
    ]
    return torch.cat(corners)


class WholeImages(ImageSet):
    """Images as they are, of any sizes, so a batch holds one of them.

    Args:
        images: The images, each uint8 of shape (C, H, W).
        corruption: What makes the inputs; it counts samples by their image.
    """

    def __init__(self, images: Sequence[Tensor], corruption: Corruption) -> None:
        super().__init__(corruption)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def clean(self, indices: Sequence[int]) -> Tensor:
        """Serve one clean image, float32 of shape (1, C, H, W) in [0, 1]."""
        (index,) = indices
        return self.images[index][None].float().div_(255)
