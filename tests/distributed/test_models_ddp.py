"""Two processes train the network that one process trains on the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from morphlightning.splines import SlopeConstraint

SCRIPT = Path(__file__).with_name("fit_models.py")
slow = pytest.mark.slow


def run(folder: Path, case: str, devices: int) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), case, str(devices)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "terminate called" not in done.stderr  # what gloo says when it is not closed
    result: dict[str, Any] = torch.load(folder / f"{case}-{devices}.pt", weights_only=True)
    return result


@pytest.mark.parametrize(
    "case",
    [
        "everything",
        "morph_sgd",
        pytest.param("sup_norm", marks=slow),
        pytest.param("radius_clipped", marks=slow),
        pytest.param("signum", marks=slow),
        pytest.param("activation_information", marks=slow),
        pytest.param("default", marks=slow),
        pytest.param("count_normalized", marks=slow),
        pytest.param("bouligand", marks=slow),
        pytest.param("prototype", marks=slow),
        pytest.param("splines", marks=slow),
        pytest.param("learned_knots", marks=slow),
        pytest.param("certified", marks=slow),
        pytest.param("denoiser", marks=slow),
        pytest.param("flow", marks=slow),
        pytest.param("ridge", marks=slow),
        pytest.param("ridge_steps", marks=slow),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, case: str) -> None:
    one, two = run(tmp_path, case, 1), run(tmp_path, case, 2)
    assert one["steps"] == two["steps"] == 20
    for name, expected in one["parameters"].items():
        assert expected.dtype == torch.float64
        error = (two["parameters"][name] - expected).norm() / expected.norm()
        assert error < 1e-10, f"{name}: {error:.2e}"
        if case == "splines" and name.endswith(".values"):
            SlopeConstraint.of("lipschitz").check(two["parameters"][name], (-3.0, 3.0))
    assert len(one["diagnostics"]) == len(two["diagnostics"])
    assert two["diagnostics"] == pytest.approx(one["diagnostics"], rel=1e-9, abs=1e-12)  # radii divide by small moves
    assert bool(one["diagnostics"]) == (case in ("everything", "count_normalized", "splines"))


@slow
@pytest.mark.parametrize("attempt", range(8))
def test_the_processes_end_well_every_time(tmp_path: Path, attempt: int) -> None:
    run(tmp_path, "count_normalized", 2)
