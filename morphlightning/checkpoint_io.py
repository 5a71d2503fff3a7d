"""Checkpoints that are whole or absent: atomic writing, and a check of every byte before loading.

``torch.save`` writes a zip container with a CRC-32 of every record, so damage is found without a second file beside the
checkpoint, in checkpoints that others wrote too. The CRCs do not cover the container's own bytes; of those only the
attribute that marks a record as a folder, which torch would then not read, could pass unseen, and it is checked. The
tests flip every byte of a checkpoint: it is refused, or loads unchanged.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from morphlightning.errors import CheckpointError

SHARDS = "shards"
"""Under ``["morphlightning"]["auxiliary"]``, the folder of files that belong to a checkpoint."""
AUXILIARIES = "auxiliaries"
"""The folder of these folders."""
_OWNER = "checkpoint.txt"
_FOLDER = 0x10  # the attribute of folders in zip containers
_PathLike = str | Path


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints atomically and refuses to load damaged ones: ``Trainer(plugins=[SafeCheckpointIO()])``.

    Writing: a temporary file in the target's own folder, flushed to the disk, then renamed over the target. A crash or
    a full disk leaves the earlier file, if there was one, as it was. Peak memory does not grow, for nothing is staged.

    Loading: all records are checked against their CRC-32 first, which reads the file twice (about 1 s per GB from the
    cache). ``weights_only`` is on unless it is switched off by name, so a checkpoint runs no code.

    Paths with a protocol (``s3://...``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PathLike, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, whole or not at all.

        Raises:
            CheckpointError: The folder cannot be written or the disk is full.
        """
        if _is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            earlier = _own_shards(target)
            _own(_shards_of(checkpoint), target)
            os.replace(temporary, target)
            _sync_folder(target.parent)
            _remove_folder(earlier)
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError of its own
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise CheckpointError(
                f"Checkpoint {target} was not written: {cause}. {_free_space(target)}. A file that was there under "
                "this name is as it was. Free some space, or save elsewhere: ModelCheckpoint(dirpath=...)."
            ) from error
        finally:
            _remove(temporary)

    def remove_checkpoint(self, path: _PathLike) -> None:
        """Remove a checkpoint and the folder of auxiliary variables that belongs to it, if there is one."""
        shards = None if _is_remote(path) else _own_shards(Path(path))
        super().remove_checkpoint(path)
        _remove_folder(shards)

    def load_checkpoint(
        self, path: _PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Check the file and load it; tensors go to the CPU unless ``map_location`` says otherwise.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is damaged, truncated or no torch checkpoint, or holds more than tensors and plain
                values while ``weights_only`` is not False. The message names the newest good checkpoint beside it.
        """
        map_location = map_location or "cpu"
        weights_only = weights_only is not False
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only)
        if not os.path.exists(path):
            raise FileNotFoundError(f"Checkpoint file not found: {path}")
        verify_checkpoint(path)
        try:
            loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=weights_only)
            return loaded
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"Checkpoint {path} holds objects other than tensors and plain values, and loading those can run code. "
                f"If you trust the file, pass weights_only=False to Trainer.fit. Torch says: {error}"
            ) from error
        except Exception as error:  # torch's reader finds faults of the container that zipfile does not mind
            raise _refusal(path, f"torch cannot read it ({type(error).__name__}: {error})") from error


def verify_checkpoint(path: _PathLike) -> None:
    """Check a local checkpoint's structure and the CRC-32 of every record, without unpickling anything.

    Raises:
        CheckpointError: What is wrong with the file, and the newest good checkpoint in the same folder.
    """
    if fault := _fault(path):
        raise _refusal(path, fault)


def newest_good_checkpoint(folder: _PathLike, besides: Path | None = None) -> Path | None:
    """The most recently written ``*.ckpt`` of a folder that passes the check, other than ``besides``."""
    files = sorted(Path(folder).glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((file for file in files if file != besides and _fault(file) is None), None)


def _refusal(path: _PathLike, fault: str) -> CheckpointError:
    good = newest_good_checkpoint(Path(path).parent, besides=Path(path))
    hint = f"The newest good checkpoint in that folder is {good}." if good else "No good checkpoint is beside it."
    return CheckpointError(f"Checkpoint {path} cannot be loaded: {fault}. {hint}")


def _fault(path: _PathLike) -> str | None:
    """What is wrong with a checkpoint file, or None."""
    try:
        with open(path, "rb") as file:
            return _fault_of_content(file)
    except OSError as error:
        return f"it cannot be read ({error})"


def _fault_of_content(file: IO[bytes]) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if size == 0:
        return "the file is empty"
    if start != b"PK\x03\x04":
        return "it is no zip container, as torch writes since 1.6; it is damaged, or a file of another or older kind"
    try:
        with zipfile.ZipFile(file) as archive:
            strange = next(
                (r.filename for r in archive.infolist() if r.compress_type or r.external_attr & _FOLDER), None
            )
            broken = None if strange else archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"the container is damaged or truncated ({error})"
    if strange:
        return f"the record {strange} is marked as compressed or as a folder, which torch does not write"
    return f"the record {broken} is damaged (its CRC-32 does not match)" if broken else None


def shard_folders(checkpoint: _PathLike, stored: _PathLike) -> list[Path]:
    """Where the folder of files that belong to a checkpoint may be: beside it, also when both were moved, or stored."""
    parents = list(Path(checkpoint).resolve().parents)[:3]
    return [*(parent / AUXILIARIES / Path(stored).name for parent in parents), Path(stored)]


def _own_shards(checkpoint: Path) -> Path | None:
    """The folder of files that belong to a checkpoint and to no copy of it."""
    if not checkpoint.is_file() or _fault(checkpoint):
        return None
    try:
        stored = _shards_of(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True))
    except (pickle.UnpicklingError, RuntimeError):  # a checkpoint of somebody else's
        return None
    if stored is None:
        return None
    folder = next((place for place in shard_folders(checkpoint, stored) if (place / _OWNER).is_file()), None)
    owns = folder is not None and (folder / (folder / _OWNER).read_text()).resolve() == checkpoint.resolve()
    return folder if owns else None


def _shards_of(checkpoint: Any) -> Path | None:
    """The folder that the content of a checkpoint names."""
    ours = checkpoint.get("morphlightning") if isinstance(checkpoint, dict) else None
    auxiliary = ours.get("auxiliary") if isinstance(ours, dict) else None
    return Path(auxiliary[SHARDS]) if isinstance(auxiliary, dict) and SHARDS in auxiliary else None


def _own(folder: Path | None, checkpoint: Path) -> None:
    """Note in a folder which checkpoint it belongs to, by the way there, which stays right when both are moved."""
    if folder is not None and folder.is_dir():
        (folder / _OWNER).write_text(os.path.relpath(checkpoint.resolve(), folder))


def _remove_folder(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _is_remote(path: _PathLike) -> bool:
    return "://" in str(path)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows offers no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:  # the folder itself is out of reach, and that error is on its way already
        return


def _free_space(path: Path) -> str:
    folder = next((parent for parent in path.parents if parent.exists()), Path("/"))
    return f"Free space on that file system: {shutil.disk_usage(folder).free / 2**20:.1f} MiB"
