"""Whole runs in processes of their own: what the guards do to exit codes, files and weights.

Each run takes some seconds for the imports alone, so most of them are marked slow.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphlightning.checkpoint_io import SafeCheckpointIO

SCRIPT = Path(__file__).with_name("fit_script.py")
LIMIT = 120  # seconds; a deadlock would last half an hour


def start(root: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """A run; what Lightning and the tests set for distributed runs is not inherited."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--root", str(root), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )


def run(root: Path, *arguments: str | Path) -> tuple[int, str]:
    process = start(root, *arguments)
    output, _ = process.communicate(timeout=LIMIT)
    return process.returncode, output


def weights(output: str) -> set[str]:
    return set(re.findall(r"weights (\w{64})", output))


def checkpoint(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def test_handwritten_gradient_stops_both_processes(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--devices", "2", "--fault", "handwritten")
    assert code == 1
    assert output.count("RankDisagreementError: After training batch 1 of this fit") == 2
    assert "'body.0.weight' (6 of 6 tensors differ): rank 0 against rank 1" in output


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "batch"), [("plain_backward", 1), ("inplace", 2)])
def test_other_ways_to_drift_apart(tmp_path: Path, fault: str, batch: int) -> None:
    code, output = run(tmp_path, "--devices", "2", "--fault", fault)
    assert code == 1
    assert output.count(f"RankDisagreementError: After training batch {batch} of this fit") == 2


@pytest.mark.slow
def test_different_plugins(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--devices", "2", "--fault", "plugins")
    assert code == 1
    assert output.count("different plugins installed: rank 0 against rank 1") == 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("fault", "said"), [("nan_batch", "DataError: Training batch"), ("nan_loss", "The loss is nan")]
)
def test_nan_on_one_process_stops_both_before_the_step(tmp_path: Path, fault: str, said: str, rank: str) -> None:
    began = time.monotonic()
    code, output = run(tmp_path, "--devices", "2", "--fault", fault, "--bad-rank", rank)
    assert time.monotonic() - began < 60
    assert code == 1
    assert output.count(said) >= 1
    assert "The gradient of 'body.0.weight'" in output  # what the other process says
    assert output.count("unchanged True") == 2


@pytest.mark.parametrize("devices", ["1", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_sigterm_saves_and_exits_with_143(tmp_path: Path, devices: str, rank: str) -> None:
    if rank >= devices:
        pytest.skip("no such process")
    code, output = run(tmp_path, "--devices", devices, "--sigterm-at", "5", "--sigterm-rank", rank)
    assert code == 143, output
    saved = tmp_path / "sigterm-epoch=0-step=6.ckpt"
    assert f"SIGTERM: saved {saved}" in output
    assert len(SafeCheckpointIO().load_checkpoint(saved)["random_state"]) == int(devices)


@pytest.mark.slow
def test_sigterm_from_outside_during_two_process_run(tmp_path: Path) -> None:
    process = start(tmp_path, "--devices", "2", "--slow", "0.1", "--epochs", "100", "--every", "2")
    while process.poll() is None and not list(tmp_path.glob("*.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, output
    SafeCheckpointIO().load_checkpoint(checkpoint(tmp_path, "sigterm-*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_resume_is_bit_exact(tmp_path: Path, devices: str) -> None:
    straight = weights(run(tmp_path / "straight", "--devices", devices, "--every", "5")[1])
    run(tmp_path / "stopped", "--devices", devices, "--sigterm-at", "5")
    run(tmp_path / "first", "--devices", devices, "--epochs", "1")
    origins = {
        "after SIGTERM": checkpoint(tmp_path / "stopped", "sigterm*"),
        "mid-epoch": checkpoint(tmp_path / "straight", "epoch=0-step=5.ckpt"),
        "epoch end": checkpoint(tmp_path / "first", "epoch=0*"),
    }
    assert len(straight) == 1
    for name, origin in origins.items():
        assert weights(run(tmp_path / "again", "--devices", devices, "--resume", origin)[1]) == straight, name


@pytest.mark.slow
def test_resume_after_sigterm_in_validation(tmp_path: Path) -> None:
    straight = weights(run(tmp_path / "straight", "--validate")[1])
    process = start(tmp_path, "--validate", "--slow", "0.3", "--every", "16")
    while process.poll() is None and not list(tmp_path.glob("*.ckpt")):  # written before validation begins
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, output
    assert "sigterm-epoch=0-step=16.ckpt" in output
    resumed = run(tmp_path / "again", "--validate", "--resume", checkpoint(tmp_path, "sigterm*"))
    assert weights(resumed[1]) == straight
