from __future__ import annotations

import subprocess
import sys

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from morphlightning import callbacks
from morphlightning.callbacks import FiniteGuard, RankAgreement, default_callbacks, missing_callbacks

DEFAULTS = ["RankAgreement", "FiniteGuard", "GracefulSigterm", "RandomState", "StartGuard"]


class Net(LightningModule):
    def configure_callbacks(self) -> list[Callback]:
        return missing_callbacks(self.trainer.callbacks)

    def training_step(self, *_: object) -> None:
        return None

    def train_dataloader(self) -> list[int]:
        return [0]

    def configure_optimizers(self) -> None:
        return None


class Stricter(RankAgreement):
    pass


def test_defaults() -> None:
    assert [type(callback).__name__ for callback in default_callbacks()] == DEFAULTS


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*", "ignore:.*training_step.*returned.*None.*")
@pytest.mark.parametrize("own", [FiniteGuard(check_batch=False), Stricter(every_n_steps=1)])
def test_the_users_own_instance_wins(own: Callback) -> None:
    trainer = Trainer(accelerator="cpu", fast_dev_run=True, logger=False, enable_progress_bar=False, callbacks=[own])
    for _ in range(2):  # a second fit adds nothing
        trainer.fit(Net())
        found = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("morphlightning")]
        assert len(found) == len(DEFAULTS) - (not type(own).__module__.startswith("morphlightning"))
        assert own in trainer.callbacks


def test_package_is_lazy() -> None:
    code = "import sys, morphlightning.callbacks as c; dir(c); print('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = callbacks.nonsense
