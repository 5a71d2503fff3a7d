"""``morphlightning fit|validate|test|predict``: LightningCLI with our defaults and short errors."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import morphlightning.data.folder
import morphlightning.data.images
import morphlightning.data.toy
import morphlightning.models  # noqa: F401 - makes the short class names of models and data known
from morphlightning.callbacks.figures import (
    ConfusionMatrix,
    LearningCurves,
    Reconstructions,
    SplineFigures,
    StructuringFunctions,
)
from morphlightning.checkpoint_io import SafeCheckpointIO
from morphlightning.errors import MorphLightningError, RunExistsError
from morphlightning.interfaces import Spline
from morphlightning.layers import MorphLayer
from morphlightning.models import (
    CertifiedClassifier,
    LiftedModule,
    MorphologicalAutoencoder,
    MorphologicalClassifier,
    RidgeRegularizerDenoiser,
)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the run folder; a run without one (``logger=False``) leaves no file."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save it once, on rank zero."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule.

    Unless switched off by the Trainer's own flags (``--trainer.logger false``, ``enable_progress_bar``,
    ``enable_checkpointing``) or replaced by the user's own, a run has a TensorBoard logger, a rich progress bar, the
    best and the last checkpoint, a learning-rate monitor, figures (``--figures false``), and safe checkpoint files.
    """

    def __init__(self, run: bool = True) -> None:
        quiet: dict[str, Any] = {"exit_on_error": False}
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            SaveConfig,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs=quiet | dict.fromkeys(self.subcommands(), quiet) if run else quiet,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments of a run beside Lightning's."""
        parser.add_argument("--run", type=str | None, default=None, help="Run folder, new (runs/<model>-<time>).")
        parser.add_argument("--figures", type=bool, default=True, help="Draw figures to TensorBoard and PNG files.")
        parser.add_argument("--monitor", type=str, default="val/loss", help="What the best checkpoint is best at.")
        parser.add_argument("--mode", type=str, default="min", help="Whether the best is the 'min' or the 'max'.")

    def _parse_ckpt_path(self) -> None:
        """The configuration counts: Lightning would override it by hyperparameters of the checkpoint."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer, with defaults for what the user left open."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            folder = run_folder(self._get(self.config_init, "run"), type(self.model).__name__)
            kwargs["logger"] = TensorBoardLogger(folder.parent, name="", version=folder.name)
        kwargs["callbacks"] = [*listed(config.get("callbacks")), *self._default_callbacks(config)]
        plugins = listed(config.get("plugins"))
        own_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if own_io else [*plugins, SafeCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _default_callbacks(self, config: dict[str, Any]) -> list[Callback]:
        """What the user neither switched off nor gave."""
        logs = config.get("logger") is not False
        monitor, mode = self._get(self.config_init, "monitor"), self._get(self.config_init, "mode")
        wanted: list[Callback] = []
        if config.get("enable_progress_bar") is not False:
            wanted.append(ProgressBar())
        if config.get("enable_checkpointing") is not False:
            best = "best-{epoch}-{step}"
            wanted.append(ModelCheckpoint(monitor=monitor, mode=mode, filename=best, save_last=True))
        if logs:
            wanted.append(LearningRateMonitor())
        if logs and self._get(self.config_init, "figures"):
            wanted += figure_callbacks(self.model)
        given = tuple(type(callback) for callback in listed(config.get("callbacks")))
        bars = (RichProgressBar, TQDMProgressBar)
        own_bar = any(issubclass(kind, bars) for kind in given)
        return [c for c in wanted if not isinstance(c, given) and not (own_bar and isinstance(c, bars))]


def listed(value: Any) -> list[Any]:
    """What the Trainer takes as nothing, one object or a list, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class ProgressBar(RichProgressBar):
    """The rich progress bar with what changes during an epoch, and no version number."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Metrics to show."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: v for name, v in metrics.items() if name != "v_num" and not name.endswith("_epoch")}


def figure_callbacks(model: L.LightningModule, every_n_epochs: int = 5) -> list[Callback]:
    """The figures that mean something for a model."""
    figures: list[Callback] = [LearningCurves()]
    if any(isinstance(module, MorphLayer) for module in model.modules()):
        figures.append(StructuringFunctions(every_n_epochs))
    if any(isinstance(module, Spline) for module in model.modules()):
        figures.append(SplineFigures(every_n_epochs))
    if isinstance(model, MorphologicalClassifier | CertifiedClassifier):
        figures.append(ConfusionMatrix(every_n_epochs))
    if _restores(model):
        figures.append(Reconstructions(every_n_epochs=every_n_epochs))
    return figures


def _restores(model: L.LightningModule) -> bool:
    """Whether ``model(inputs)`` is an image to be compared with the target."""
    if isinstance(model, LiftedModule):
        return bool(model.hparams["data_range"])
    if isinstance(model, RidgeRegularizerDenoiser):
        return model.knows_the_level
    return isinstance(model, MorphologicalAutoencoder)


def run_folder(given: str | None, name: str) -> Path:
    """The folder of a new run.

    Raises:
        RunExistsError: It is there already.
    """
    folder = Path(given) if given else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    rank = getattr(rank_zero_only, "rank", 0)  # set from the launcher's environment
    if rank == 0 and folder.exists() and any(folder.iterdir()):
        raise RunExistsError(
            f"the run folder {folder} exists already and nothing in it is overwritten; choose another --run "
            "(to resume a run, give its checkpoint with --ckpt_path and a new --run)"
        )
    return folder


def run(argv: list[str]) -> int:
    """Run one of Lightning's subcommands; a configuration that cannot work is told in a few lines."""
    try:
        check_yaml(argv)
        with process_arguments(argv):
            TrainingCLI()
    except (ArgumentError, ValueError) as error:
        explained = explain(error)
        if explained is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        print(f"(see morphlightning {argv[0]} --help, or --print_config for all settings)", file=sys.stderr)
        return 2
    return 0


def check_yaml(argv: list[str]) -> None:
    """Name the file, the line and the column of YAML that cannot be read; the parser says neither.

    Raises:
        ArgumentError: A configuration file is malformed.
    """
    for option, value in pairwise(argv):
        if option in ("--config", "-c") and Path(value).is_file():
            try:
                yaml.safe_load(Path(value).read_text())
            except yaml.MarkedYAMLError as error:
                where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
                raise ArgumentError(None, f"{value} is not valid YAML: {error.problem}{where}") from error


def explain(error: BaseException) -> str | None:
    """What is wrong with a configuration, without the parser's search for other readings; None for other errors."""
    if isinstance(error, MorphLightningError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MorphLightningError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip() and not line.strip().startswith(_NOISE)]
    if isinstance(error, ArgumentError) or len(lines) < len(str(error).splitlines()):
        return "\n".join(lines)
    return None


# lines in which jsonargparse lists what else a value could have been
_NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Does not validate",
    "- Expected a <class 'NoneType'>",
)


@contextmanager
def process_arguments(argv: list[str]) -> Iterator[None]:
    """LightningCLI and the DDP launcher both read the arguments of the process."""
    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        sys.argv = before
