"""The runs of a comparison and of an ablation, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from training import Images, Run, Way, train
from ways import OURS, PLAIN, RATES, SPREADS, WITHOUT


class Study:
    """Runs on some images, all of the same number of epochs; ``runs`` holds those that are finished."""

    def __init__(self, images: Images, epochs: int, console: Console) -> None:
        self._images, self._epochs, self._console = images, epochs, console
        self.runs: list[Run] = []

    def comparison(self, seeds: Sequence[int]) -> tuple[list[Run], list[Run]]:
        """Ours and plain autograd for all seeds, after looking for the latter's learning rate and start."""
        ours = [self.run(OURS, seed) for seed in seeds]
        best = self._best([PLAIN.but(PLAIN.name, lr=lr) for lr in RATES], seeds[0])
        others = [best.way.but(PLAIN.name, {"spread": spread}) for spread in SPREADS]
        best = max(
            [best, self._best([way for way in others if way != best.way], seeds[0])], key=lambda r: r.val_accuracy
        )
        return ours, [best, *(self.run(best.way, seed) for seed in seeds[1:])]

    def ablation(self, seeds: Sequence[int]) -> list[Run]:
        """Ours, and ours without each of its ingredients."""
        return [self.run(way, seed) for way in (OURS, *WITHOUT) for seed in seeds]

    def run(self, way: Way, seed: int) -> Run:
        """Train and report."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            task = progress.add_task(f"{way.name}, seed {seed}", total=self._epochs)
            found = train(way, seed, self._images, self._epochs, lambda epoch: progress.update(task, completed=epoch))
        self.runs.append(found)
        start = f"lr {way.lr:g}, spread {way.shape.spread:g}, seed {seed}"
        self._console.print(f"{way.name}, {start}: validation {100 * found.val_accuracy:.2f} %")
        return found

    def _best(self, ways: Sequence[Way], seed: int) -> Run:
        return max([self.run(way, seed) for way in ways], key=lambda run: run.val_accuracy)
