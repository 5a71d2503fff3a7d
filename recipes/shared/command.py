"""How a recipe's command is read, begins and fails."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path


def start(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Read the command line, set the number of threads, run; an error of ours is one line, with the usage."""
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # read when a library is loaded, so before any import of one
    from morphlightning.errors import MorphLightningError

    try:
        run(chosen)
    except MorphLightningError as error:
        parser.error(str(error))


def study_parser(name: str, description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    """The command line of a study of images in several parts; seeds are the recipe's own."""
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="where the images are or shall be; default: data")
    parser.add_argument("--dataset", choices=("mnist", "fashion"), default="mnist")
    parser.add_argument("--preset", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--device", default="cpu", help="where networks are trained; default: cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / name)
    return parser
