"""Splines as plain tables in files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

from morphlightning.errors import ConfigError
from morphlightning.splines.table import SplineTable


def save_table(table: SplineTable, path: str | Path) -> None:
    """Write a table, every number exactly.

    ``.csv`` has a row for each knot with ``spline, knot, value, slope``, the slope of the piece to the right of the
    knot; ``.json`` has ``{"knots": [[...], ...], "values": [[...], ...]}``.

    Raises:
        ConfigError: The path ends otherwise.
    """
    path = Path(path)
    _check(path)
    with path.open("w", newline="") as file:
        if path.suffix == ".json":
            table = table.detach().double()
            json.dump({"knots": table.knots.tolist(), "values": table.values.tolist()}, file)
        else:
            rows = table.rows()
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def load_table(path: str | Path) -> SplineTable:
    """The table in a file that :func:`save_table` wrote, in float64.

    Raises:
        ConfigError: The path ends otherwise than with ``.csv`` or ``.json``.
    """
    path = Path(path)
    _check(path)
    with path.open(newline="") as file:
        if path.suffix == ".json":
            columns = json.load(file)
        else:
            rows = list(csv.DictReader(file))
            splines = 1 + max(int(row["spline"]) for row in rows)
            columns = {
                name: torch.tensor([float(row[key]) for row in rows], dtype=torch.float64).view(splines, -1).tolist()
                for name, key in (("knots", "knot"), ("values", "value"))
            }
    knots, values = (torch.tensor(columns[name], dtype=torch.float64) for name in ("knots", "values"))
    return SplineTable(knots, values)


def _check(path: Path) -> None:
    if path.suffix not in (".csv", ".json"):
        raise ConfigError(f"a table is saved as .csv or .json, got {path}")
