"""Denoising of the images in any folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from morphlightning.data.base import ImageDataModule
from morphlightning.data.corruption import TEST, TRAINING, VALIDATION, Corruption
from morphlightning.data.sets import ImageSet, Patches, WholeImages, patch_corners
from morphlightning.errors import ConfigError, DataError

EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageFolderDenoising(ImageDataModule):
    """Pairs (noisy, clean) from the images of any folder: patches for training, whole images for evaluation.

    Folders are searched with their subfolders for BMP, JPEG, PGM, PNG, PPM, TIFF and WebP files of 8 bits a channel.
    The decoded images stay in memory, height x width x channels bytes each. Images of validation, test and prediction
    are served as they are, one a batch, since their sizes differ.

    Where ``noise`` is a range, every image has a noise level of its own and batches are triples (noisy, clean, level),
    level float32 of shape (B,), in evaluation too.

    Args:
        root: Folder of the training images.
        patch_size: Side of the square patches of training, in pixels.
        stride: Distance between the corners of neighbouring patches, in pixels; None for ``patch_size``, no overlap.
        noise: Standard deviation of the Gaussian noise, in units of the images (white is 1); noisy values are not
            clipped. A pair (lowest, highest) draws the level of each training patch uniformly.
        channels: 1 for grey images (colour is converted), 3 for colour.
        val_root: Folder of the validation images; None sets ``val_fraction`` of the images of ``root`` aside.
        test_root: Folder of the images for test and prediction; None for none.
        batch_size: Patches of one batch of one process.
        val_fraction: See ``val_root``; in [0, 1), 0 for no validation.
        seed: Seed of the split, the order and the noise; not negative.
        num_workers: Worker processes of each loader.
        fixed_noise: Give a training patch the same noise in every epoch.
        train_size: Use at most so many training patches, chosen by the seed; None for all.
        pin_memory: Let the loaders return page-locked memory, for quicker copies to a CUDA device.
        eval_noise: The noise level of validation, test and prediction; None for ``noise``, or the middle of its range.
        scales: Factors by which the training images are resized; patches are cut from all sizes.
        symmetries: Train on all eight rotations and mirror images of each patch, each a sample of its own.
        passes: How often an epoch goes through the data; other than 1 only for models that own samples.

    Raises:
        ConfigError: A setting is out of its range; the message names it.
    """

    eval_batch_size = 1

    def __init__(
        self,
        root: str | Path,
        *,
        patch_size: int = 40,
        stride: int | None = None,
        noise: float | Sequence[float] = 25 / 255,
        channels: int = 1,
        val_root: str | Path | None = None,
        test_root: str | Path | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        fixed_noise: bool = False,
        train_size: int | None = None,
        pin_memory: bool = False,
        eval_noise: float | None = None,
        scales: Sequence[float] = (1.0,),
        symmetries: bool = False,
        passes: int = 1,
    ) -> None:
        root = str(root)  # checkpoints hold plain values
        val_root = None if val_root is None else str(val_root)
        test_root = None if test_root is None else str(test_root)
        scales = list(scales)
        low, high = noise if isinstance(noise, Sequence) else (noise, noise)
        noise = [low, high] if isinstance(noise, Sequence) else noise
        super().__init__(
            task="denoising",
            batch_size=batch_size,
            val_fraction=val_fraction,
            seed=seed,
            num_workers=num_workers,
            noise=high,
            fixed_noise=fixed_noise,
            train_size=train_size,
            pin_memory=pin_memory,
            passes=passes,
        )
        self._check(patch_size >= 1, "patch_size", patch_size, "at least 1")
        self._check(stride is None or stride >= 1, "stride", stride, "None or at least 1")
        self._check(0 <= low <= high, "noise", noise, "a level, or (lowest, highest)")
        self._check(eval_noise is None or 0 <= eval_noise < math.inf, "eval_noise", eval_noise, "None or a level >= 0")
        self._check(len(scales) > 0 and all(0 < s < math.inf for s in scales), "scales", scales, "positive factors")
        self._check(channels in (1, 3), "channels", channels, "1 (grey) or 3 (colour)")
        self.in_shape = (channels, patch_size, patch_size)

    def training_sets(self) -> tuple[ImageSet, ImageSet | None]:
        """Cut the training images into patches; keep whole images for validation."""
        train = self._read("root")
        if self.hparams["val_root"] is not None:
            val = self._read("val_root")
        else:
            files = list(train)
            for_training, for_validation = (part.tolist() for part in self.split(len(files)))
            train, val = ({files[i]: train[files[i]] for i in sorted(part)} for part in (for_training, for_validation))
        return self._patches(train), self._whole(val, VALIDATION) if val else None

    def test_set(self) -> ImageSet:
        """Keep the test images whole."""
        if self.hparams["test_root"] is None:
            raise ConfigError("ImageFolderDenoising: test and predict need test_root, the folder of the test images")
        return self._whole(self._read("test_root"), TEST)

    def corruption(self, train: bool, stream: int = TRAINING) -> Corruption:
        """Make what turns clean images into inputs, for training or for evaluation."""
        noise, level = self.hparams["noise"], self.hparams["eval_noise"]
        varies = isinstance(noise, Sequence)
        if not train:
            level = level if level is not None else sum(noise) / 2 if varies else noise
            noise = (level, level) if varies else level
        return replace(super().corruption(train, stream), noise=tuple(noise) if varies else noise)

    def _patches(self, images: dict[Path, Tensor]) -> Patches:
        size = self.hparams["patch_size"]
        images = {
            path if scale == 1 else path / f"x{scale}": resized(image, scale)
            for path, image in images.items()
            for scale in self.hparams["scales"]
        }
        for path, image in images.items():
            if min(image.shape[1:]) < size:
                height, width = image.shape[1:]
                raise DataError(
                    f"ImageFolderDenoising: {path} has {height} x {width} pixels, smaller than a patch of {size} x "
                    f"{size}; take a smaller patch_size or remove the image"
                )
        pixels = list(images.values())
        corners = patch_corners(pixels, size, self.hparams["stride"] or size)
        count = len(corners) * (8 if self.hparams["symmetries"] else 1)
        rows = self.permutation(count, purpose="subset")[: self.hparams["train_size"]]
        return Patches(pixels, corners, rows, size, self.corruption(train=True))

    def _whole(self, images: dict[Path, Tensor], stream: int) -> WholeImages:
        return WholeImages(list(images.values()), self.corruption(train=False, stream=stream))

    def _read(self, setting: str) -> dict[Path, Tensor]:
        """Read all images of a folder, in the order of their paths."""
        folder = Path(self.hparams[setting]).expanduser()
        if not folder.is_dir():
            raise DataError(f"ImageFolderDenoising: {setting}={str(folder)!r} is no folder (looked from {Path.cwd()})")
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not paths:
            raise DataError(
                f"ImageFolderDenoising: no image in {setting}={str(folder)!r} or its subfolders; looked for "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        return {path: read_image(path, self.hparams["channels"]) for path in paths}


def resized(image: Tensor, scale: float) -> Tensor:
    """Resize an image, uint8 of shape (C, H, W), to round(scale * side) pixels a side; bicubic with antialiasing."""
    if scale == 1:
        return image
    size = [max(1, round(scale * side)) for side in image.shape[1:]]
    out = nn.functional.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)
    return out[0].round_().clamp_(0, 255).byte()


def read_image(path: Path, channels: int) -> Tensor:
    """Read an image file as uint8 of shape (channels, H, W), converted to grey or colour.

    Raises:
        DataError: The file cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first"
                )
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); repair or remove it") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()
