from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from morphlightning.checkpoint_io import SafeCheckpointIO, newest_good_checkpoint, verify_checkpoint
from morphlightning.errors import CheckpointError

CONTENT: dict[str, Any] = {
    "state_dict": {
        "w": torch.arange(12.0).reshape(3, 4),
        "n": torch.tensor(5),
        "d": torch.ones(9, dtype=torch.float64),
    },
    "epoch": 3,
    "hparams": {"name": "bouligand", "list": [1, 2.5, None, True]},
}


def same(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return isinstance(y, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y)
    if isinstance(x, dict):
        return isinstance(y, dict) and list(x) == list(y) and all(same(x[k], y[k]) for k in x)
    return type(x) is type(y) and x == y


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "good.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_round_trip_leaves_nothing_else(good: Path) -> None:
    assert same(SafeCheckpointIO().load_checkpoint(good), CONTENT)
    assert os.listdir(good.parent) == ["good.ckpt"]
    assert good.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def outcome(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    try:
        loaded = SafeCheckpointIO().load_checkpoint(path)
    except CheckpointError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    return "unchanged" if same(loaded, CONTENT) else "silent damage"


def flips(data: bytes, positions: range, seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(position, mask) for position in positions for mask in (0xFF, 1 << rng.randrange(8))]


def assert_no_silent_damage(path: Path, cases: list[tuple[int, int]], data: bytes) -> None:
    counts = {"refused": 0, "unchanged": 0}
    for position, mask in cases:
        damaged = bytearray(data)
        damaged[position] ^= mask
        result = outcome(path, bytes(damaged))
        assert result in counts, f"byte {position} xor {mask}: {result}"
        counts[result] += 1
    assert counts["refused"] > 0.5 * len(cases)


def test_flipped_bytes_never_load_silently(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    directory = data.index(b"PK\x01\x02")  # the container's directory is dense with what the CRCs do not cover
    positions = [*range(0, directory, 23), *range(directory, len(data), 7)]
    cases = [case for p in positions for case in flips(data, range(p, p + 1), p)]
    assert_no_silent_damage(tmp_path / "bad.bin", cases, data)


@pytest.mark.slow
def test_every_flipped_byte(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    assert_no_silent_damage(tmp_path / "bad.bin", flips(data, range(len(data)), 0), data)


def test_a_record_marked_as_folder_is_refused(good: Path) -> None:
    data = bytearray(good.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 200)
    data[entry + 38] ^= 0x10  # torch would return memory it never filled
    good.write_bytes(data)
    with pytest.raises(CheckpointError, match="marked as compressed or as a folder"):
        verify_checkpoint(good)


def test_truncated_files_are_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for size in range(0, len(data), len(data) // 20):
        assert outcome(tmp_path / "bad.ckpt", data[:size]) == "refused", size


def test_message_names_the_newest_good_checkpoint(good: Path) -> None:
    data = bytearray(good.read_bytes())
    older, broken, bad = (good.with_name(f"{name}.ckpt") for name in ("older", "broken", "bad"))
    older.write_bytes(data)
    os.utime(older, (1, 1))
    data[data.index(torch.tensor(5).numpy().tobytes())] ^= 1  # one bit of a tensor
    bad.write_bytes(data)
    broken.write_bytes(b"")
    os.utime(broken, (time.time() + 60,) * 2)
    with pytest.raises(CheckpointError, match=r"record .*data/\d is damaged.*newest good checkpoint.*good\.ckpt"):
        SafeCheckpointIO().load_checkpoint(bad)
    assert newest_good_checkpoint(good.parent, besides=good) == older


def test_nothing_good_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match=r"damaged or truncated .*No good checkpoint is beside it"):
        verify_checkpoint(tmp_path / "a.ckpt")


def test_legacy_file_and_folder(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="no zip container"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafeCheckpointIO().load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


def test_checkpoints_of_others_load(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "torch.pt")
    TorchCheckpointIO().save_checkpoint(CONTENT, str(tmp_path / "lightning.ckpt"))
    for file in tmp_path.iterdir():
        assert same(SafeCheckpointIO().load_checkpoint(file), CONTENT)


def test_objects_need_weights_only_false(tmp_path: Path) -> None:
    path = tmp_path / "objects.ckpt"
    SafeCheckpointIO().save_checkpoint({"hparams": Namespace(a=1)}, path)
    for weights_only in (None, True):
        with pytest.raises(CheckpointError, match="pass weights_only=False"):
            SafeCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert SafeCheckpointIO().load_checkpoint(path, weights_only=False)["hparams"].a == 1


FULL_DISK = """
import resource, sys, torch
from morphlightning.checkpoint_io import SafeCheckpointIO
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the kernel refuses to write more, as a full disk does
try:
    SafeCheckpointIO().save_checkpoint({"w": torch.zeros(1_000_000)}, sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_failed_write_keeps_the_earlier_file(good: Path) -> None:
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(good)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"CheckpointError Checkpoint {good} was not written")
    assert "File too large" in run.stdout
    assert "MiB" in run.stdout
    assert os.listdir(good.parent) == ["good.ckpt"]
    assert same(SafeCheckpointIO().load_checkpoint(good), CONTENT)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"was not written.*MiB"):
        SafeCheckpointIO().save_checkpoint(CONTENT, tmp_path / "file" / "a.ckpt")


def test_unpicklable_content_leaves_nothing(good: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        SafeCheckpointIO().save_checkpoint({"f": lambda: 0, **CONTENT}, good)
    assert os.listdir(good.parent) == ["good.ckpt"]
    assert same(SafeCheckpointIO().load_checkpoint(good), CONTENT)


def test_remote_paths_go_to_lightning() -> None:
    path = "memory://bucket/a.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENT, path)
    assert same(SafeCheckpointIO().load_checkpoint(path), CONTENT)


def test_storage_options_are_refused_as_by_lightning(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        SafeCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt", storage_options={"a": 1})
