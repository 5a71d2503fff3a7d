"""Run groups of cases: call everything once, compare results, time in turns, and write what came out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import figure
import machine
import markers
import memory
import numpy as np
import peers
import tables
import timing
import torch
from cases import MODES, Candidate, Case, Mode, Row, Setting
from groups import GROUPS
from rich.console import Console
from rich.progress import Progress

TOLERANCE = 1e-4
"""Relative to the largest number, between an operator of ours and a peer."""


def cases_of(group: str, setting: Setting) -> Iterator[Case]:
    """The cases of a group, each made when its turn comes."""
    torch.manual_seed(0)
    cases: Iterator[Case] = getattr(importlib.import_module(GROUPS[group]), group)(setting)
    return cases


class Bench:
    """One run: what is measured, and where it is shown and written."""

    def __init__(
        self,
        setting: Setting,
        rounds: int,
        options: Sequence[str],
        with_memory: bool,
        results: Path,
        table: Path | None,
    ) -> None:
        self.setting, self.rounds, self.options, self.with_memory = (setting, rounds, options, with_memory)
        self.folder, self.table = results / f"{datetime.now():%Y%m%d-%H%M%S}", table
        self.console = Console()
        if not self.console.is_terminal:
            self.console = Console(width=190)
        self.notes: list[str] = []

    def run(self, groups: Sequence[str]) -> None:
        """Measure groups and write each as soon as it is complete."""
        self.folder.mkdir(parents=True)
        for group in groups:
            self.notes = []
            rows = [row for case in cases_of(group, self.setting) for row in self.measure(group, case)]
            self.write(group, rows)
        self.console.print(f"written to {self.folder}")

    # ------------------------------------------------------------------------------------------- measuring
    def measure(self, group: str, case: Case) -> list[Row]:
        """All modes of one case."""
        rows: list[Row] = []
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            for mode in case.modes:
                ready = self.ready(case, mode)
                total = self.rounds * (len(ready) + len(case.limits) * (mode == "forward"))
                task = progress.add_task(f"{group}: {case.name}, {MODES[mode]}", total=total)
                rows += self.timed(group, case, mode, ready, partial(progress.advance, task))
        return [self.with_peak(row, case) for row in rows] if self.with_memory else rows

    def ready(self, case: Case, mode: Mode) -> dict[str, timing.Timed]:
        """Candidates that work, called once: compiled, imported, and compared with ours."""
        found: dict[str, timing.Timed] = {}
        expected: Any = None
        for candidate in case.contenders(mode):
            around = partial(surroundings, candidate, mode)
            try:
                with around():
                    call = candidate.call(mode)
                    result = None if candidate.own_clock else call()
            except Exception as error:
                if candidate.role == "ours":
                    raise
                self.notes.append(f"{case.name}, {candidate.name}: {type(error).__name__}: {error}"[:300])
                continue
            found[candidate.name] = timing.Timed(around, call, candidate.own_clock)
            if result is not None and candidate.role != "other":
                expected = result if expected is None else expected
                self.compare(case, candidate, result, expected)
        return found

    def compare(self, case: Case, candidate: Candidate, result: Any, expected: Any) -> None:
        """Note results that are not ours."""
        mine, theirs = (np.asarray(t.detach().cpu() if torch.is_tensor(t) else t) for t in (expected, result))
        error = np.abs(mine - theirs.reshape(mine.shape)).max()
        if not error <= TOLERANCE * max(1.0, np.abs(mine).max()):
            self.notes.append(f"{case.name}, {candidate.name}: differs from ours by {error:.2g}")

    def timed(
        self, group: str, case: Case, mode: Mode, ready: dict[str, timing.Timed], tick: Callable[[], object]
    ) -> list[Row]:
        """Rows of one mode: operators and limits in the same rounds."""
        limits = case.limits if mode == "forward" else ()
        measured = {f"limit: {limit.name}": timing.Timed(torch.no_grad, limit.run) for limit in limits if limit.run}
        times = timing.interleaved(ready | measured, self.setting, self.rounds, tick)
        rates = [limit.work / times[f"limit: {limit.name}"].median if limit.run else limit.work for limit in limits]
        reference = times.get(case.reference)
        contenders = [c for c in case.contenders(mode) if c.name in times]
        ours = next(times[c.name] for c in contenders if c.role == "ours")
        rows = []
        for c in contenders:
            time = times[c.name]
            rate = case.work / time.median if mode == "forward" and case.work else None
            row = Row(
                group=group,
                case=case.name,
                mode=mode,
                operator=c.name,
                role=c.role,
                backend=c.backend,
                milliseconds=1e3 * time.median,
                first_quartile=1e3 * time.first_quartile,
                third_quartile=1e3 * time.third_quartile,
                samples=time.samples,
                reference=case.reference,
                times_reference=time.median / reference.median if reference else float("nan"),
                times_ours=time.median / ours.median,
                rate=rate and rate / 1e9,
                unit=case.unit,
                limit_fraction=rate / max(rates) if rate and rates else None,
                memory_mib=None,
            )
            rows.append(row)
        return rows

    def with_peak(self, row: Row, case: Case) -> Row:
        """The row with the peak extra memory of a call."""
        candidate = next(c for c in case.candidates if c.name == row.operator)
        if candidate.own_clock:
            return row
        if self.setting.device == "cuda":
            return replace(row, memory_mib=memory.of_call(self.setting, candidate, row.mode))
        options = [*self.options, "--groups", row.group]
        return replace(row, memory_mib=memory.in_child(options, row.case, row.mode, row.operator))

    # --------------------------------------------------------------------------------------------- writing
    def write(self, group: str, rows: list[Row]) -> None:
        """Show one group and write its files."""
        facts, caveats = machine.facts(self.setting), machine.caveats(self.setting)
        notes = [*caveats, *self.notes, *(f"not installed: {name} ({why})" for name, why in peers.missing.items())]
        self.console.print(tables.on_screen(f"{group} on {facts['processor']}, {facts['threads']}", rows))
        self.console.print("\n".join(f"- {note}" for note in notes), style="dim", markup=False, highlight=False)
        tables.write_csv(self.folder / f"{group}.csv", rows)
        figure.draw(self.folder / f"{group}.png", f"{group}: {facts['processor']}, {facts['threads']}", rows)
        table = tables.as_markdown(rows)
        about = "\n".join([f"- {name}: {value}" for name, value in facts.items()] + [f"- {note}" for note in notes])
        (self.folder / f"{group}.md").write_text(f"# {group}\n\n{table}\n{about}\n", encoding="utf-8")
        if self.table:
            source = f"{facts['date']}, {facts['processor']}, {facts['device']}, {facts['threads']}"
            markers.replace(
                self.table, group, f"\n{table}\n{source}, torch {torch.__version__}, {facts['allocator']}.\n"
            )


@contextmanager
def surroundings(candidate: Candidate, mode: Mode) -> Iterator[None]:
    """The backend of a candidate, and gradients where it trains."""
    with candidate.context(), torch.set_grad_enabled(mode == "step"):
        yield


def peak_memory(setting: Setting, group: str, case: str, mode: Mode, operator: str) -> None:
    """Print the MiB that one call takes at most: what the child process of a run does."""
    (found,) = (c for c in cases_of(group, setting) if c.name == case)
    candidate = next(c for c in found.candidates if c.name == operator)
    print(json.dumps(memory.of_call(setting, candidate, mode)))
