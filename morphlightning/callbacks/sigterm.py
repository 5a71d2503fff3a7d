"""SIGTERM ends a run with a checkpoint and exit code 143."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

EXIT_CODE = 128 + signal.SIGTERM


class GracefulSigterm(Callback):
    """On SIGTERM, ends the training batch, saves ``sigterm-epoch=E-step=S.ckpt`` and exits with code 143.

    The signal may reach any process: after each training batch all agree whether one of them was asked to stop, and
    stop at the same place. (Lightning's own handler runs a collective inside the signal handler, which can meet another
    one on the other processes, hears process 0 alone, and lets the run exit with code 0.) In one process a
    validation run is left too; with several processes it is finished first, for their loaders may differ in length.

    The checkpoint goes where the ModelCheckpoint writes, else to ``default_root_dir/checkpoints``, never over a file
    that is there. A signal handler of your own that was set before ``fit`` is called as well.

    Works for processes that train: one process, ``strategy="ddp"``, torchrun, SLURM. With ``ddp_spawn`` and
    ``ddp_fork`` the signal must reach a worker, for the parent does not train.

    Cost: one reduction of a single number per training batch in runs of several processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False
        self._agreed = False
        self._users_handler: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handler that was there before Lightning's."""
        self._users_handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning's handler; Lightning puts the original one back when the run is over."""
        self._asked, self._agreed = trainer.received_sigterm, False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Agree with the other processes whether to stop."""
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Stop at once where nobody else has to agree."""
        if self._asked and trainer.world_size == 1 and not trainer.sanity_checking:
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the checkpoint and set the exit code."""
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = EXIT_CODE
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank > 0:
            atexit.register(_outlive, os.getppid())
        if self._agreed and not getattr(trainer, "fast_dev_run", False):
            path = _free_path(trainer)
            trainer.save_checkpoint(path)
            rank_zero_info(f"SIGTERM: saved {path}. Go on with Trainer.fit(..., ckpt_path={str(path)!r}).")

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        if callable(self._users_handler):
            self._users_handler(signum, frame)

    def _stop(self, trainer: Trainer) -> None:
        """Have Lightning raise SIGTERMException at the end of the batch, when all hooks have run."""
        self._agreed = True
        trainer._signal_connector.received_sigterm = True


def _free_path(trainer: Trainer) -> Path:
    folder = getattr(trainer.checkpoint_callback, "dirpath", None) or Path(trainer.default_root_dir, "checkpoints")
    stem = f"sigterm-epoch={trainer.current_epoch}-step={trainer.global_step}"
    path, version = Path(folder, f"{stem}.ckpt"), 0
    while path.exists():
        version += 1
        path = Path(folder, f"{stem}-v{version}.ckpt")
    return path


def _outlive(launcher: int) -> None:
    """Let the launching process exit first: it kills itself (-9) when it sees a child gone with an error code."""
    deadline = time.monotonic() + 30
    while os.getppid() == launcher and time.monotonic() < deadline:
        time.sleep(0.02)
