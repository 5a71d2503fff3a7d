from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from morphlightning_plugins.diagnostics import SplineMonitor
from torch import Tensor, nn

from morphlightning.splines import LinearSpline, NonuniformSpline, SlopeConstraint


class Still(L.LightningModule):
    """Splines that do not move."""

    def __init__(self, *splines: nn.Module) -> None:
        super().__init__()
        self.splines = nn.ModuleList(splines)
        self.weight = nn.Parameter(torch.ones(()))
        self.logged: list[tuple[int, str, float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.weight.square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.append((self.global_step, name.removeprefix("diagnostics/spline_monitor/"), float(value)))


def fit(folder: Path, module: L.LightningModule, every: int, accumulate: int = 1) -> None:
    L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        callbacks=[SplineMonitor(every_n_steps=every)],
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(module, torch.utils.data.DataLoader(torch.zeros(8, 1)))


def test_it_counts_active_knots_and_slopes(tmp_path: Path) -> None:
    free = NonuniformSpline(2, knots=[-2.0, -1.0, 0.0, 1.0, 3.0])
    with torch.no_grad():
        free.values.copy_(torch.tensor([[0.0, 0.0, 0.0, 2.0, 6.0], [0.0, 1.0, 0.0, 1.0, 3.0]]))
    bound = LinearSpline(knots=21, init="absolute", constraint={"max": 1.0, "strict": True})
    bound.constraint = SlopeConstraint(max=0.75)
    bound.projection = "step"  # and no step that would restore it
    module = Still(free, bound)
    fit(tmp_path, module, every=4)
    assert {step for step, *_ in module.logged} == {4, 8}
    found = {name: value for step, name, value in module.logged if step == 8}
    assert found == pytest.approx(
        {
            "splines.0/active_knots": 1.5,  # 1, and 2 of 3
            "splines.0/tv2": 3.0,
            "splines.0/steepest": 2.0,
            "splines.1/active_knots": 1.0,
            "splines.1/tv2": 2.0,
            "splines.1/steepest": 1.0,
            "splines.1/excess": 0.25,
        },
        rel=1e-5,
    )


def test_micro_batches_are_no_steps(tmp_path: Path) -> None:
    module = Still(LinearSpline())
    fit(tmp_path, module, every=2, accumulate=2)
    assert [step for step, name, _ in module.logged if name.endswith("tv2")] == [2, 4]


def test_it_says_where_there_is_nothing_to_see(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="spline_monitor: Still holds no learnable splines"):
        fit(tmp_path, Still(), every=1)
