"""The command line: ``morphlightning fit|validate|test|predict|demo|plugins|doctor``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from morphlightning.errors import MorphLightningError

TRAINING = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process where it is None.

    Returns:
        The exit status: 0, 1 for a failed run, 2 for arguments or configurations that cannot work. A run ended by
        SIGTERM exits with 143 after a checkpoint.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # lightning's own, in every run
    try:
        if given and given[0] in TRAINING:
            from morphlightning.cli.training import run

            return run(given)
        return _run_other(given)
    except MorphLightningError as error:
        if os.environ.get("MORPHLIGHTNING_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print("(MORPHLIGHTNING_TRACEBACK=1 shows where it was raised)", file=sys.stderr)
        return 1


def _run_other(given: list[str]) -> int:
    arguments = _parser().parse_args(given)
    if arguments.command == "demo":
        from morphlightning.cli.demo import run_demo

        return run_demo(arguments.run, arguments.epochs, arguments.seed)
    if arguments.command == "plugins":
        from morphlightning.cli import plugins

        return plugins.run(arguments)
    from morphlightning import doctor

    return doctor.main(json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    from morphlightning.cli import plugins

    parser = argparse.ArgumentParser("morphlightning", description="Networks that are not smooth, on Lightning.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in TRAINING:
        commands.add_parser(name, help=f"Trainer.{name} from YAML and arguments; see morphlightning {name} --help")
    demo = commands.add_parser("demo", help="train a classifier and a denoiser on handwritten digits, in a minute")
    demo.add_argument("--run", default=None, help="folder for results, which must not exist (runs/demo-<time>)")
    demo.add_argument("--epochs", type=int, default=None, help="epochs of each model (by default enough to be good)")
    demo.add_argument("--seed", type=int, default=0)
    plugins.add_arguments(commands.add_parser("plugins", help="list installed components, or show one"))
    commands.add_parser("doctor", help="check the installation").add_argument("--json", action="store_true")
    return parser
