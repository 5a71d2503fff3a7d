"""Tables of one group of cases: on the screen, as CSV and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

from cases import MODES, Mode, Row
from rich.table import Table

PREFIXES = {"pair": "Gpair/s", "pixel": "Gpixel/s", "element": "Gelement/s"}


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Column names, and a line for each operator of each case; the modes stand side by side."""
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    references = {row.reference for row in rows}
    reference = references.pop() if len(references) == 1 else "reference"
    measured = any(row.memory_mib is not None for row in rows)
    limited = any(row.limit_fraction is not None for row in rows)
    columns = ["case", "operator"]
    for mode in modes:
        columns += [f"{MODES[mode]} ms (quartiles)", f"x {reference}", "x ours"]
        if mode == "forward":
            columns += [PREFIXES[rows[0].unit], *(["% of limit"] if limited else [])]
        columns += ["MiB"] if measured else []
    lines, previous = [], ""
    for (case, operator), group in groupby(sorted_by_case(rows), key=lambda row: (row.case, row.operator)):
        by_mode = {row.mode: row for row in group}
        line = [case if case != previous else "", operator]
        for mode in modes:
            line += figures(by_mode.get(mode), mode, measured, limited)
        lines.append(line)
        previous = case
    return columns, lines


def sorted_by_case(rows: Sequence[Row]) -> list[Row]:
    """Rows of one operator side by side, cases and operators in the order in which they came."""
    cases = {row.case: k for k, row in reversed(list(enumerate(rows)))}
    operators = {(row.case, row.operator): k for k, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: (cases[row.case], operators[row.case, row.operator]))


def figures(row: Row | None, mode: Mode, measured: bool, limited: bool) -> list[str]:
    """The figures of one operator in one mode."""
    if row is None:
        return [""] * (3 + (1 + limited if mode == "forward" else 0) + measured)
    spread = f"{short(row.milliseconds)} ({short(row.first_quartile)} to {short(row.third_quartile)})"
    line = [spread, short(row.times_reference), short(row.times_ours)]
    if mode == "forward":
        line.append(short(row.rate))
        line += [short(None if row.limit_fraction is None else 100 * row.limit_fraction)] if limited else []
    return line + ([short(row.memory_mib)] if measured else [])


def short(number: float | None) -> str:
    """Three digits, without an exponent; nothing for what was not measured."""
    if number is None:
        return ""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:#.3g}" if abs(number) >= 1e-3 else f"{number:.1g}"


def on_screen(title: str, rows: Sequence[Row]) -> Table:
    columns, lines = cells(rows)
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k > 1 else "left", overflow="fold")
    for k, line in enumerate(lines):
        if line[0] and k:
            table.add_row()
        table.add_row(*line)
    return table


def as_markdown(rows: Sequence[Row]) -> str:
    columns, lines = cells(rows)
    rules = [":--" if k < 2 else "--:" for k in range(len(columns))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rules, *lines]) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every figure, unrounded; never over an earlier file."""
    with open(path, "x", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
