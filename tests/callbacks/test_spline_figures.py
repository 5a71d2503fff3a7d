from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.callbacks import SplineFigures
from morphlightning.callbacks.figures.splines import draw_splines, splines_of
from morphlightning.errors import ConfigError
from morphlightning.splines import LinearSpline, NonuniformSpline

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = (self.network(batch[0]) - batch[0][:, :1].sin()).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


def fit(folder: Path, model: LightningModule, *callbacks: Any, resume: Path | None = None, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **options,
    )
    trainer.fit(model, DataLoader(TensorDataset(X), batch_size=8), ckpt_path=resume, weights_only=True)
    return trainer


def splines() -> Model:
    return Model(LinearSpline(6, channel_dim=-1, constraint="lipschitz"), NonuniformSpline(knots=9, init="identity"))


def test_every_spline_is_drawn_before_during_and_after(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, "log")
    fit(tmp_path, splines(), SplineFigures(2), logger=logger, log_every_n_steps=1, max_epochs=3)
    drawn = sorted(path.name for path in tmp_path.rglob("*.png"))
    moments = ["epoch=000-step=000000", "epoch=001-step=000008", "epoch=002-step=000012"]
    assert drawn == [f"splines-network.{layer}-{moment}.png" for layer in (1, 2) for moment in moments]
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("figures/splines/network.1")] == [0, 8, 12]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")
def test_a_resumed_run_still_knows_the_start(tmp_path: Path) -> None:
    model = splines()
    start = dict(splines_of(model))
    first = SplineFigures()
    fit(tmp_path, model, first, ModelCheckpoint(tmp_path, "last"), max_epochs=1)
    again = SplineFigures()
    fit(tmp_path, splines(), again, resume=tmp_path / "last.ckpt", max_epochs=2)
    assert start.keys() == again.start.keys() == {"network.1", "network.2"}
    for name, points in start.items():
        assert all(map(torch.equal, points, again.start[name]))
    assert not torch.equal(dict(splines_of(model))["network.1"][1], start["network.1"][1])


def test_what_is_drawn() -> None:
    spline = LinearSpline(40, knots=21, init="soft_threshold")
    ((_, now),) = splines_of(spline)
    figure = draw_splines("net.3", now, now, 10, "epoch 2")
    panels = [axis for axis in figure.axes if axis.lines]
    assert [panel.get_title() for panel in panels] == ["0", "4", "9", "13", "17", "22", "26", "30", "35", "39"]
    *_, then, line, kinks = panels[0].lines
    assert torch.allclose(torch.as_tensor(line.get_xdata()[[0, -1]]), torch.tensor([-3.6, 3.6]))
    assert (line.get_ydata() == then.get_ydata()).all()
    assert len(kinks.get_xdata()) == 2
    assert "10 of 40 splines, epoch 2" in figure.get_suptitle()
    assert "active knots 2 of 19, slopes 0.667 to 1" in figure.get_suptitle()


def test_no_splines_and_bad_arguments(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="SplineFigures: Model holds no learnable splines"):
        fit(tmp_path, Model(nn.ReLU()), SplineFigures(), max_epochs=1)
    assert not list(tmp_path.rglob("*.png"))
    with pytest.raises(ConfigError, match="max_splines must be 1 or more"):
        SplineFigures(max_splines=0)
