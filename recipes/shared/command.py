"""How a recipe's command begins and how it fails."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable


def start(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """Read the command line, set the number of threads, run; an error of ours is one line, with the usage."""
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # read when a library is loaded, so before any import of one
    from morphlightning.errors import MorphLightningError

    try:
        run(chosen)
    except MorphLightningError as error:
        parser.error(str(error))
