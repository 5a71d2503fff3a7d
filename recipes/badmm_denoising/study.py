"""The parts of the experiment: grids, the comparison, costs and pictures. Nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grids
from grids import Choice, Score
from harness import Trace, autoencoder, measure
from images import Images
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from ways import Family, Way


@dataclass(frozen=True)
class Row:
    """A tuned method, and its runs of all seeds."""

    choice: Choice
    traces: tuple[Trace, ...]


class Study:
    """Runs on some images, all of so many iterations.

    Args:
        images: What is trained and measured on.
        data: Their name.
        iterations: Of every run.
        families: What is compared.
        console: Where progress is shown.
        scores: Points of grids that are known, by noise level and way.
    """

    def __init__(
        self,
        images: Images,
        data: str,
        iterations: int,
        families: Sequence[Family],
        console: Console,
        scores: dict[tuple[float, Way], Score],
    ) -> None:
        self.images, self.data, self.iterations, self.families = images, data, iterations, families
        self.console, self.scores = console, scores
        self.traces: dict[tuple[float, int, Way], Trace] = {}
        self.shown = images.one_of_each()

    def grid(self, noise: float, write: Callable[[list[dict[str, object]]], None]) -> list[Choice]:
        """Tune all families at a noise level; ``write`` gets the points of each family when they are all there."""
        chosen = []
        with self._progress(f"grids, noise {noise:g}") as tell:
            for family in self.families:

                def score(way: Way, name: str = family.name) -> Score:
                    tell(f"{name}: {way}")
                    return self.score(way, noise)

                tried = grids.search(family, score)
                found = grids.choose(family, tried)
                for choice in found:
                    self.console.print(f"noise {noise:g}, {choice}: {tried[choice.way]}", highlight=False)
                write([row | self.facts for row in grids.rows(noise, family, tried, found)])
                chosen += found
        return chosen

    @property
    def facts(self) -> dict[str, object]:
        """What a point of a grid depends on besides its settings and the noise level."""
        return {"data": self.data, "iterations": self.iterations}

    def score(self, way: Way, noise: float) -> Score:
        """Train on the images of seed 0, and look at those for validation."""
        if (noise, way) not in self.scores:
            task = self.images.task(noise, 0)
            network = autoencoder(self.images.pixels, self.images.hidden, 0)
            last = measure(way, network, task.train, task.validation, self.iterations, checkpoints=()).last
            self.scores[noise, way] = Score(last.train_mse, last.psnr, last.seconds)
        return self.scores[noise, way]

    def compare(self, noise: float, chosen: Sequence[Choice], seeds: Sequence[int]) -> list[Row]:
        """Run what was chosen with all seeds; seed by seed, so that a machine that slows down slows all."""
        with self._progress(f"comparison, noise {noise:g}") as tell:
            for seed in seeds:
                for choice in chosen:
                    tell(f"seed {seed}, {choice.name}: {choice.way}")
                    self.trace(choice.way, noise, seed)
        return [Row(choice, tuple(self.trace(choice.way, noise, seed) for seed in seeds)) for choice in chosen]

    def trace(self, way: Way, noise: float, seed: int) -> Trace:
        """Train on the images of a seed, and look at those that are held out."""
        if (noise, seed, way) not in self.traces:
            task = self.images.task(noise, seed)
            network = autoencoder(self.images.pixels, self.images.hidden, seed)
            found = measure(way, network, task.train, task.held_out, self.iterations, shown=self.shown)
            self.traces[noise, seed, way] = found
        return self.traces[noise, seed, way]

    @contextmanager
    def _progress(self, title: str) -> Iterator[Callable[[str], None]]:
        """A line that says what runs, and how many runs there were."""
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=None)
            count = 0

            def tell(what: str) -> None:
                nonlocal count
                count += 1
                progress.update(task, description=f"{title}, run {count}: {what}")

            yield tell
