"""Two processes log the stability of all of their images, and train as they do without it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from morphlightning.metrics import DeformationStability, EquivarianceDefect, ShiftConsistency

SCRIPT = Path(__file__).with_name("fit_watched.py")


def run(folder: Path, name: str) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), name],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, Any] = torch.load(folder / f"{name}.pt", weights_only=True)
    return result


@pytest.mark.slow
def test_two_processes_log_the_metrics_of_all_images_and_train_as_without(tmp_path: Path) -> None:
    alone, watched = (run(tmp_path, name) for name in ("alone", "watched"))
    assert torch.equal(alone["random"], watched["random"])
    assert all(torch.equal(value, watched["state"][name]) for name, value in alone["state"].items())

    spec = importlib.util.spec_from_file_location("fit_watched", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    module = script.Model()
    module.load_state_dict(watched["state"])
    expected = {}
    metrics = {"": DeformationStability((0.2,)), "shift_consistency": ShiftConsistency()}
    metrics |= {group: EquivarianceDefect(group) for group in ("shift", "brightness")}  # type: ignore[arg-type]
    for kind, metric in metrics.items():
        for rank in range(2):
            for batch in script.images().double()[rank::2].split(4):  # as DistributedSampler shares them out
                metric.update(module.network, batch)
        for key, value in metric.compute().items():
            layer, _, number = key.rpartition("/")
            name = {"": key, "shift_consistency": kind if key == "mean" else None}.get(
                kind, f"{kind}/{layer}" if number == "relative" else None
            )
            expected |= {f"diagnostics/stability/{name}": value} if name else {}
    assert watched["logged"].keys() == expected.keys()
    for key, value in watched["logged"].items():
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=1e-5, atol=1e-7)
