"""Readers of data files: IDX (the MNIST family) and CIFAR's binary batches, plain or compressed."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphlightning.errors import DataError

SUFFIXES = ("", ".gz", ".xz")

_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}
_UINT8 = 0x08


def find_file(folders: Iterable[Path], name: str) -> Path | None:
    """Find the first of ``name``, ``name.gz``, ``name.xz`` in the folders, in their order."""
    for folder in folders:
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    return None


def read_bytes(path: Path) -> bytes:
    """Read a whole file, decompressed where its name ends in .gz or .xz.

    Raises:
        DataError: The compressed stream is damaged or ends early.
    """
    try:
        content = path.read_bytes()
        return _DECOMPRESS[path.suffix](content) if path.suffix in _DECOMPRESS else content
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); delete it and fetch it again") from error


def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes with ``ndim`` axes: the format of MNIST and its kin.

    Layout, big-endian: two zero bytes, the type (0x08), the number of axes, one 32-bit size an axis, then the values.

    Args:
        path: The file, plain, .gz or .xz.
        ndim: Number of axes that it has to have: 3 for images, 1 for labels.

    Returns:
        A uint8 tensor of the shape that the file declares.

    Raises:
        DataError: The magic number, the axes or the length do not fit, or the file holds no sample.
    """
    content = read_bytes(path)
    magic = bytes([0, 0, _UINT8, ndim])
    if content[:4] != magic:
        raise DataError(f"{path} is no IDX file of bytes with {ndim} axes: starts {content[:4]!r}, expected {magic!r}")
    header = 4 + 4 * ndim
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist()) if len(content) >= header else ()
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(shape) != ndim or len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes, its header declares shape {shape} and so {expected} bytes; "
            "it is cut short or damaged: delete it and fetch it again"
        )
    if shape[0] == 0:
        raise DataError(f"{path} is empty: its header declares 0 samples")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())


def read_cifar10(path: Path) -> tuple[Tensor, Tensor]:
    """Read one batch of CIFAR-10's binary version: records of a label byte and 3 x 32 x 32 pixel bytes.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) uint8.

    Raises:
        DataError: The file is empty, or its length is no multiple of a record.
    """
    record = 1 + 3 * 32 * 32
    content = read_bytes(path)
    if not content or len(content) % record:
        raise DataError(f"{path} holds {len(content)} bytes, expected a positive multiple of {record}")
    records = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(-1, record).copy())
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
