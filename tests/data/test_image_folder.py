"""Denoising of images in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from morphlightning.data import ImageFolderDenoising
from morphlightning.data.folder import read_image
from morphlightning.errors import ConfigError, DataError


def pixels(height: int = 20, width: int = 30, seed: int = 0, channels: int = 1) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a.png", "b.PNG", "sub/c.png", "sub/d.bmp"]):
        Image.fromarray(pixels(seed=number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def module(root: Path, **settings: Any) -> ImageFolderDenoising:
    made = ImageFolderDenoising(root, **{"patch_size": 8, "stride": 4, "val_fraction": 0.25, **settings})
    made.setup("fit")
    return made


def test_patches_for_training_and_whole_images_for_validation(root: Path) -> None:
    made = module(root)
    noisy, clean = next(iter(made.train_dataloader()))
    assert clean.shape == (64, *made.in_shape) == (64, 1, 8, 8)
    assert len(made.train_dataloader().dataset) == 3 * 4 * 6  # images x grid rows x grid columns
    assert abs((noisy - clean).std() - 25 / 255) < 0.01
    ((val_noisy, val_clean),) = list(made.val_dataloader())
    assert val_clean.shape == val_noisy.shape == (1, 1, 20, 30)
    assert not torch.equal(val_noisy, val_clean)


def test_patches_are_cut_where_the_grid_says(root: Path) -> None:
    made = module(root, val_fraction=0, stride=None)
    expected = set()
    for number in range(4):
        image = torch.from_numpy(pixels(seed=number))
        expected |= {image[y : y + 8, x : x + 8].numpy().tobytes() for y in (0, 8) for x in (0, 8, 16)}
    served = {(clean * 255).round().byte().numpy().tobytes() for _, clean in made._sets["train"]}  # type: ignore[union-attr]
    assert served == expected
    assert len(made._sets["train"]) == 24  # type: ignore[arg-type]


def test_noise_changes_with_the_epoch_and_not_with_the_cap(root: Path) -> None:
    def patches(epoch: int, **settings: Any) -> dict[bytes, bytes]:
        loader = module(root, **settings).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        pairs = [pair for batch in loader for pair in zip(*batch, strict=True)]
        return {clean.numpy().tobytes(): noisy.numpy().tobytes() for noisy, clean in pairs}

    whole, capped, later = patches(0), patches(0, train_size=10), patches(1)
    assert len(capped) == 10
    assert all(whole[key] == capped[key] for key in capped)
    assert all(whole[key] != later[key] for key in whole)


def test_separate_folders_for_validation_and_test(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(pixels(5, 6)).save(other / "small.png")
    Image.fromarray(pixels(7, 4)).save(other / "tall.png")
    made = ImageFolderDenoising(root / "sub", patch_size=8, val_root=other, test_root=str(other))
    made.setup()
    assert [clean.shape[2:] for _, clean in made.val_dataloader()] == [(5, 6), (7, 4)]
    assert [clean.shape[2:] for _, clean in made.test_dataloader()] == [(5, 6), (7, 4)]
    assert [clean.shape[2:] for _, clean in made.predict_dataloader()] == [(5, 6), (7, 4)]
    assert len(made.train_dataloader().dataset) == 2 * 2 * 3
    assert made.hparams["val_root"] == str(other)
    val, test = next(iter(made.val_dataloader()))[0], next(iter(made.test_dataloader()))[0]
    assert not torch.equal(val, test)  # the same image, other noise


def test_grey_and_colour(tmp_path: Path) -> None:
    colour = pixels(10, 12, channels=3)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    assert np.array_equal(read_image(tmp_path / "colour.png", 3).permute(1, 2, 0).numpy(), colour)
    grey = read_image(tmp_path / "colour.png", 1)
    assert grey.shape == (1, 10, 12)
    Image.fromarray(grey[0].numpy()).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png", 3), grey.expand(3, -1, -1))
    made = ImageFolderDenoising(tmp_path, patch_size=10, channels=3, val_fraction=0.5)
    made.setup("fit")
    assert next(iter(made.train_dataloader()))[0].shape == (1, 3, 10, 10)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root='.*nowhere' is no folder"):
        module(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image in root='.*\.png"):
        module(tmp_path)


def test_an_unreadable_image_is_named(root: Path) -> None:
    content = (root / "a.png").read_bytes()
    for damaged in (b"no image", content[: len(content) // 2], b""):
        (root / "a.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.png cannot be read"):
            module(root)


def test_an_image_of_16_bits_is_refused(root: Path) -> None:
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(root / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits"):
        module(root)


def test_an_image_smaller_than_a_patch_is_named(root: Path) -> None:
    Image.fromarray(pixels(7, 30, seed=9)).save(root / "low.png")
    with pytest.raises(DataError, match=r"low\.png has 7 x 30 pixels, smaller than a patch of 8 x 8"):
        module(root, val_fraction=0)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "only.png")
    with pytest.raises(DataError, match=r"val_fraction=0\.25 leaves none"):
        module(tmp_path)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"patch_size": 0}, "patch_size=0, expected at least 1"),
        ({"stride": 0}, "stride=0"),
        ({"channels": 2}, r"channels=2, expected 1 \(grey\) or 3"),
        ({"noise": -1.0}, "noise=-1.0"),
    ],
)
def test_settings_out_of_range_are_refused(root: Path, setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ImageFolderDenoising(root, **setting)


def test_test_without_a_folder_says_so(root: Path) -> None:
    with pytest.raises(ConfigError, match="test_root"):
        module(root).setup("test")
