"""Denoising of images in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from morphlightning.data import ImageFolderDenoising
from morphlightning.data.folder import read_image, resized
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
        ({"noise": (0.2, 0.1)}, r"noise=\[0.2, 0.1\], expected a level, or \(lowest"),
        ({"eval_noise": -1.0}, "eval_noise=-1.0"),
        ({"scales": (1.0, 0.0)}, "scales="),
    ],
)
def test_settings_out_of_range_are_refused(root: Path, setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ImageFolderDenoising(root, **setting)


def test_test_without_a_folder_says_so(root: Path) -> None:
    with pytest.raises(ConfigError, match="test_root"):
        module(root).setup("test")


def test_a_range_of_noise_gives_each_patch_a_level_of_its_own(root: Path) -> None:
    made = module(root, noise=(0.0, 0.2), eval_noise=0.15)
    noisy, clean, level = next(iter(made.train_dataloader()))
    assert level.shape == (64,)
    assert level.dtype == torch.float32
    ratio = (noisy - clean).flatten(1).std(1) / level  # of 64 values: 1 +- 0.09
    assert ((ratio > 0.6) & (ratio < 1.4)).all()
    ((noisy, clean, level),) = list(made.val_dataloader())
    assert level.tolist() == pytest.approx([0.15])
    assert abs((noisy - clean).std() - 0.15) < 0.02
    assert made.hparams["noise"] == [0.0, 0.2]  # plain
    middle = module(root, noise=(0.1, 0.2)).val_dataloader()
    assert next(iter(middle))[2].item() == pytest.approx(0.15)


def test_one_level_of_noise_can_differ_for_evaluation(root: Path) -> None:
    ((noisy, clean),) = list(module(root, noise=0.1, eval_noise=0.0).val_dataloader())
    assert torch.equal(noisy, clean)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_levels_of_an_epoch_do_not_depend_on_workers(root: Path, workers: int) -> None:
    made = module(root, noise=(0.0, 0.2), num_workers=workers, train_size=20, batch_size=7)
    sigma = torch.cat([level for *_, level in made.train_dataloader()])
    order = list(made.train_dataloader().sampler)
    served = made._sets["train"]
    assert served is not None
    assert torch.equal(sigma, torch.stack([served[key][2] for key in order]))


def test_symmetries_serve_each_patch_in_eight_ways(root: Path) -> None:
    plain, all_eight = module(root, noise=0.0), module(root, noise=0.0, symmetries=True)
    patches = torch.cat([clean for _, clean in plain.train_dataloader()])
    expected = set()
    for patch in patches:
        for mirrored in (patch, patch.flip(-1)):
            expected |= {torch.rot90(mirrored, k, (-2, -1)).numpy().tobytes() for k in range(4)}
    served = [clean.numpy().tobytes() for _, clean in all_eight._sets["train"]]  # type: ignore[union-attr]
    assert len(served) == 8 * len(patches) == len(expected)
    assert set(served) == expected


def test_scales_add_patches_of_resized_images(root: Path) -> None:
    made = module(root, scales=(1.0, 0.5), stride=None)
    assert len(made._sets["train"]) == 3 * (2 * 3 + 1 * 1)  # type: ignore[arg-type]  # 20 x 30 and 10 x 15
    flat = torch.full((1, 9, 5), 77, dtype=torch.uint8)
    assert torch.equal(resized(flat, 0.7), torch.full((1, 6, 4), 77, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"x0\.3 has 6 x 9 pixels, smaller than a patch"):
        module(root, scales=(0.3,))
