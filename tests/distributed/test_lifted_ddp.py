"""Lifted training on two processes: the sums over samples are those of one process, whoever owns the samples."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("fit_lifted.py")
slow = pytest.mark.slow


def start(folder: Path, devices: int, *jobs: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(devices), *jobs],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )


def run(folder: Path, devices: int, *jobs: str) -> dict[str, Any]:
    done = start(folder, devices, *jobs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {job: torch.load(folder / f"{job}-{devices}.pt", weights_only=True) for job in jobs}


def assert_near(result: dict[str, Any], right: dict[str, Any]) -> None:
    assert result["steps"] == right["steps"]
    for name, expected in right["weights"].items():
        assert expected.dtype == torch.float64
        error = (result["weights"][name] - expected).norm() / expected.norm()
        assert error < 1e-10, f"{name}: {error:.2e}"
    assert result["logged"].keys() == right["logged"].keys()
    for name, values in right["logged"].items():
        assert result["logged"][name] == pytest.approx(values, rel=1e-8, abs=1e-12), name


def assert_equal(result: dict[str, Any], right: dict[str, Any]) -> None:
    assert result["steps"] == right["steps"]
    assert all(torch.equal(result["weights"][name], value) for name, value in right["weights"].items())


@pytest.mark.parametrize(
    "cases",
    [
        ("badmm", "full", "incremental", "memoryless", "ema", "stream", "conv"),
        pytest.param(("mirror", "sweep", "stream-full", "stream-cpu", "conv-stream"), marks=slow),
    ],
    ids=len,
)
def test_two_processes_equal_one(tmp_path: Path, cases: tuple[str, ...]) -> None:
    one, two = run(tmp_path, 1, *cases), run(tmp_path, 2, *cases)
    for case in cases:
        passes = 15 * (3 if case in ("incremental", "memoryless", "ema") else 1)
        assert one[case]["steps"] == passes
        assert_near(two[case], one[case])


@slow
def test_checkpoints_of_any_number_of_processes_resume_on_any(tmp_path: Path) -> None:
    cases = ("badmm", "incremental", "ema", "stream", "shards", "shards-stream")
    straight = {devices: run(tmp_path, devices, *(f"{case}:save" for case in cases)) for devices in (1, 2)}
    for devices in (1, 2):
        for saved_by in (1, 2):
            resumed = run(tmp_path, devices, *(f"{case}:resume={saved_by}" for case in cases))
            for case in cases:
                compare = assert_equal if devices == saved_by else assert_near
                right = straight[saved_by][f"{case}:save"]
                result = resumed[f"{case}:resume={saved_by}"]
                compare(result | {"logged": {}}, right | {"logged": {}})
    assert len(list((tmp_path / "auxiliaries").glob("*/rank=1.ckpt"))) == 2


@slow
@pytest.mark.parametrize("case", ["nan", "nan-stream"])
def test_bad_data_of_one_process_stop_both(tmp_path: Path, case: str) -> None:
    began = time.monotonic()
    done = start(tmp_path, 2, case)
    assert time.monotonic() - began < 100
    assert done.returncode == 1
    assert "DataError: Training batch" in done.stderr
    assert "101" in done.stderr
