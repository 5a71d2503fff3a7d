"""The readers of IDX and CIFAR files, on files made here."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest
import torch

from morphlightning.data.files import find_file, read_cifar10, read_idx
from morphlightning.errors import DataError

IMAGES = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx_bytes(values: torch.Tensor, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.numpy().tobytes()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(COMPRESS[suffix](idx_bytes(IMAGES)))
    read = read_idx(path, ndim=3)
    assert read.dtype == torch.uint8
    assert torch.equal(read, IMAGES)
    read[0] = 0  # the tensor owns writable memory


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("keep", [0, 3, 7, 20, -1])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(COMPRESS[suffix](idx_bytes(IMAGES))[:keep])
    with pytest.raises(DataError, match="images"):
        read_idx(path, ndim=3)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_damaged_stream_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    content = bytearray(COMPRESS[suffix](idx_bytes(torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8))))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / f"images{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images.*(damaged|declares)"):
        read_idx(path, ndim=3)


def test_surplus_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(IMAGES) + b"x")
    with pytest.raises(DataError, match=r"77 bytes.*\(3, 4, 5\).*76 bytes"):
        read_idx(tmp_path / "images", ndim=3)


def test_wrong_magic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "floats").write_bytes(idx_bytes(IMAGES, kind=0x0D))
    with pytest.raises(DataError, match=r"no IDX file.*expected b'\\x00\\x00\\x08\\x03'"):
        read_idx(tmp_path / "floats", ndim=3)


def test_labels_in_place_of_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(idx_bytes(torch.zeros(3, dtype=torch.uint8)))
    with pytest.raises(DataError, match="3 axes"):
        read_idx(tmp_path / "labels", ndim=3)


def test_an_empty_collection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(torch.zeros(0, 28, 28, dtype=torch.uint8)))
    with pytest.raises(DataError, match="0 samples"):
        read_idx(tmp_path / "images", ndim=3)


def test_folders_are_searched_in_order_and_plain_files_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (second / "a").touch()
    assert find_file([first, second], "a") == second / "a"
    (first / "a.xz").touch()
    assert find_file([first, second], "a") == first / "a.xz"
    (first / "a").touch()
    assert find_file([first, second], "a") == first / "a"
    assert find_file([first, second], "b") is None


def test_cifar_records(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([7, 2], dtype=torch.uint8)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(torch.cat([labels[:, None], images.flatten(1)], dim=1).numpy().tobytes())
    read, read_labels = read_cifar10(path)
    assert torch.equal(read, images)
    assert torch.equal(read_labels, labels)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin holds 6145 bytes.*multiple of 3073"):
        read_cifar10(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        read_cifar10(path)
