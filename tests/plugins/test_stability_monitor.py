from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from morphlightning_plugins.diagnostics import StabilityMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.errors import BrokenCertificateError, ConfigError
from morphlightning.interfaces import Equivariances
from morphlightning.layers import Dilation2d, Erosion
from morphlightning.metrics import DeformationStability, EquivarianceDefect, ShiftConsistency


def loader(seed: int, count: int = 12) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 10, 10, generator=draw)
    return DataLoader(TensorDataset(images, (images[:, 0, 0, 0] > 0.5).long()), batch_size=6)


class Classifier(L.LightningModule):
    def __init__(self, *layers: nn.Module, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(*(layers or _layers(dropout)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _layers(dropout: float) -> Sequence[nn.Module]:
    return [
        Dilation2d(1, 2, 3, stride=2), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(50, 2)
    ]  # fmt: skip


def trainer(folder: Path, monitor: StabilityMonitor | None, **settings: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[monitor] if monitor else [],
        **{"max_epochs": 2, "logger": False, **quiet, **settings},
    )


def test_it_logs_what_the_metrics_say(tmp_path: Path) -> None:
    module, monitor = Classifier(), StabilityMonitor(gradients=(0.2,), groups=("shift", "gain"), batches=1)
    run = trainer(tmp_path, monitor)
    run.fit(module, loader(0), loader(1))
    logged = {k.removeprefix("diagnostics/stability/"): v for k, v in run.callback_metrics.items() if "stability" in k}
    images = next(iter(loader(1)))[0]
    expected: dict[str, Tensor] = {}
    stability, consistency = DeformationStability((0.2,)), ShiftConsistency()
    stability.update(module.network, images)
    consistency.update(module.network, images)
    expected |= stability.compute() | {"shift_consistency": consistency.compute()["mean"]}
    for group in ("shift", "gain"):
        defect = EquivarianceDefect(group)  # type: ignore[arg-type]
        defect.update(module.network, images)
        expected |= {
            f"{group}/{key.removesuffix('/relative')}": value
            for key, value in defect.compute().items()
            if key.endswith("/relative")
        }
    assert logged.keys() == expected.keys()
    assert {"D@0.2", "R@0.2", "C100@0.2", "shift/0", "shift/network", "gain/5", "shift_consistency"} <= logged.keys()
    for key, value in logged.items():
        torch.testing.assert_close(value.double(), expected[key].double(), equal_nan=True)
    assert logged["shift/0"] == 0, "a windowed dilation, inside"


def test_it_goes_to_tensorboard_once_an_epoch_that_is_due(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = StabilityMonitor(gradients=(0.2,), groups=(), every_n_epochs=2, shift=0)
    trainer(tmp_path, monitor, max_epochs=5, logger=logger).fit(Classifier(), loader(0), loader(1))
    events = EventAccumulator(str(tmp_path)).Reload()
    steps = [event.step for event in events.Scalars("diagnostics/stability/D@0.2")]
    assert steps == [3, 7], "after epochs 2 and 4 of two steps"


def test_training_is_bit_equal_with_and_without_it(tmp_path: Path) -> None:
    ends = []
    for monitor in (None, StabilityMonitor()):
        L.seed_everything(3, verbose=False)
        module = Classifier()
        trainer(tmp_path, monitor).fit(module, loader(0), loader(1))
        ends.append((module.state_dict(), torch.get_rng_state()))
    (one, state), (other, other_state) = ends
    assert torch.equal(state, other_state)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_validate_alone_is_measured(tmp_path: Path) -> None:
    monitor = StabilityMonitor(every_n_epochs=7)
    (found,) = trainer(tmp_path, monitor).validate(Classifier(), loader(1), verbose=False)
    assert "diagnostics/stability/D@0.1" in found


class Liar(nn.Module):
    def equivariances(self) -> Equivariances:
        return Equivariances(rounded=frozenset({"brightness"}))

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_a_false_claim_fails_the_run(tmp_path: Path) -> None:
    module = Classifier(Liar(), nn.Flatten(), Erosion(100, 2))
    with pytest.raises(BrokenCertificateError, match="commute with brightness do not: 0 by"):
        trainer(tmp_path, StabilityMonitor()).fit(module, loader(0), loader(1))


class Vectors(Classifier):
    """Its samples are no images."""


def test_what_cannot_be_measured_is_one_warning(tmp_path: Path) -> None:
    module = Vectors(nn.Linear(4, 2))
    samples = DataLoader(TensorDataset(torch.randn(4, 4), torch.zeros(4).long()), batch_size=2)
    run = trainer(tmp_path, StabilityMonitor())
    with pytest.warns(UserWarning, match=r"stability is turned off for the rest of this fit: .*\(2, 4\)") as caught:
        run.fit(module, samples, samples)
    assert sum("turned off" in str(warning.message) for warning in caught) == 1
    assert not any("stability" in key for key in run.callback_metrics)


def test_without_validation_it_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="stability: nothing was logged, for no validation was due"):
        trainer(tmp_path, StabilityMonitor(), limit_val_batches=0).fit(Classifier(), loader(0), loader(1))


def test_images_to_images_have_no_shift_consistency(tmp_path: Path) -> None:
    class Denoiser(Classifier):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (self.network(batch[0]) - batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            pass

    run = trainer(tmp_path, StabilityMonitor(gradients=(0.2,)), max_epochs=1)
    run.fit(Denoiser(Dilation2d(1, kernel_size=3)), loader(0), loader(1))
    assert "diagnostics/stability/shift/network" in run.callback_metrics
    assert "diagnostics/stability/shift_consistency" not in run.callback_metrics


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="every_n_epochs >= 1"):
        StabilityMonitor(every_n_epochs=0)
    with pytest.raises(ConfigError, match="group must be one of"):
        StabilityMonitor(groups=("rotation",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lower them"):
        StabilityMonitor(gradients=(1.5,))
