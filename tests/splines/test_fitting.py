"""Splines fitted to functions, and saved as plain tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphlightning.errors import ConfigError
from morphlightning.splines import LinearSpline, SplineTable, fit, load_table, save_table

KNOTS = torch.linspace(-3, 3, 61, dtype=torch.float64)


def test_error_of_interpolation_is_measured_between_knots() -> None:
    """For a smooth function it is at most h^2 max |f''| / 8."""
    found = fit(torch.sin, KNOTS)
    assert 0.9 * 0.1**2 / 8 < found.error <= 0.1**2 / 8
    assert abs(abs(found.at) - torch.pi / 2) < 0.1
    assert abs(float(found.table(torch.tensor([found.at]).double())) - torch.sin(torch.tensor(found.at))) > 1e-3
    kink = fit(torch.relu, torch.tensor([-1.0, 0.5, 2.0]))
    assert kink.error == pytest.approx(1 / 3, rel=0.1)


def test_fewer_knots_within_the_tolerance() -> None:
    found = fit(torch.tanh, KNOTS, tolerance=0.02)
    assert found.table.values.shape[1] < 15
    assert found.error <= 0.02 + 0.1**2 / 8
    with pytest.raises(ConfigError, match="not finite at 0"):
        fit(torch.reciprocal, torch.arange(-2.0, 3.0))
    with pytest.raises(ConfigError, match="ascend"):
        fit(torch.sin, KNOTS.flip(0))


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_tables_in_files(tmp_path: Path, suffix: str) -> None:
    module = LinearSpline(channels=3, knots=7, init=torch.sin)
    table = SplineTable(module.table().knots, module.table().values + torch.randn(3, 1) / 3)
    save_table(table, tmp_path / f"table.{suffix}")
    again = load_table(tmp_path / f"table.{suffix}")
    assert torch.equal(again.knots, table.knots.double())
    assert torch.equal(again.values, table.values.double())
    for call in (lambda p: save_table(table, p), load_table):
        with pytest.raises(ConfigError, match=r"\.csv or \.json"):
            call(tmp_path / "table.txt")
