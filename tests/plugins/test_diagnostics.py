from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.callbacks import TouchCounts
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Diagnostic
from morphlightning.layers import Dilation, sites


class OneUnit(L.LightningModule):
    """A dilation whose winners are known: unit i takes input i of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Dilation(4, 1, initializer="zeros")
        self.logged: list[tuple[int, str, float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        from morphlightning.layers import apply_update_heuristics

        apply_update_heuristics(self)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged.append((self.global_step, name, float(value)))


def fit(folder: Path, module: OneUnit, diagnostic: Any, epochs: int = 1) -> None:
    # winners of the four batches of two: inputs 0 and 0, 0 and 1, 2 and 2, 2 and 1; nobody takes input 3
    winners = torch.tensor([0, 0, 0, 1, 2, 2, 2, 1])
    x = nn.functional.one_hot(winners, 4).float()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2)
    L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        callbacks=[diagnostic],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(module, loader)


def test_gradient_density_is_the_share_of_weights_that_a_message_touched(tmp_path: Path) -> None:
    module = OneUnit()
    diagnostic = registry.build("diagnostics", {"name": "gradient_density", "every_n_steps": 1})
    assert isinstance(diagnostic, Diagnostic)
    fit(tmp_path, module, diagnostic, epochs=2)
    name = "diagnostics/gradient_density/layer"
    steps = [(0, 0.25), (1, 0.5), (2, 0.25), (3, 0.5)]
    assert [(s, v) for s, n, v in module.logged if n == name] == steps + [(s + 4, v) for s, v in steps]
    assert [v for _, n, v in module.logged if n == f"{name}/dead"] == [0.25, 0.25]


def test_gradient_density_logs_every_n_steps(tmp_path: Path) -> None:
    module = OneUnit()
    fit(tmp_path, module, registry.build("diagnostics", {"name": "gradient_density", "every_n_steps": 3}))
    assert [step for step, name, _ in module.logged if name.endswith("layer")] == [2]  # the third


def test_gradient_density_tells_dead_rows_and_leaves_out_missing_weights(tmp_path: Path) -> None:
    module = OneUnit()
    module.layer = Dilation(4, 2, initializer="zeros")
    module.layer.weight.data[1] = -9.0
    module.layer.mask[0, 3] = False
    module.training_step = lambda batch, batch_idx: module.layer(batch[0])[:, 0].sum()  # type: ignore[method-assign]
    fit(tmp_path, module, registry.build("diagnostics", {"name": "gradient_density", "every_n_steps": 1}))
    logged = {name.rpartition("/layer")[2]: value for _, name, value in module.logged}
    assert logged == {"": pytest.approx(2 / 7), "/touched": 2, "/dead": pytest.approx(4 / 7), "/dead_rows": 0.5}


def test_nobody_reads_nobody_pays(tmp_path: Path) -> None:
    module = OneUnit()
    (_, site), *_ = sites(module)
    assert site.ghosts.touches is None
    fit(tmp_path, module, Two())
    assert site.ghosts.touches is None


class Two(TouchCounts):
    """Another reader beside a diagnostic, that stops reading first."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (_, site), *_ = sites(pl_module)
        site.read(self.reads)
        site.release(self.reads)
        assert site.ghosts.touches is not None


def test_a_fit_that_breaks_off_stops_the_counting(tmp_path: Path) -> None:
    module = OneUnit()
    module.training_step = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, module, registry.build("diagnostics", "gradient_density"))
    assert module.layer.site.ghosts.touches is None


def test_counts_end_with_their_step_where_nobody_applies_update_heuristics(tmp_path: Path) -> None:
    module = OneUnit()
    module.on_before_optimizer_step = lambda optimizer: None  # type: ignore[method-assign, assignment]
    fit(tmp_path, module, registry.build("diagnostics", {"name": "gradient_density", "every_n_steps": 1}))
    assert [v for _, name, v in module.logged if name.endswith("/layer")] == [0.25, 0.5, 0.25, 0.5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "gradient_density", "every_n_steps": 0}, "every_n_steps must be >= 1, got 0"),
        ({"name": "tie_monitor", "every_n_steps": 0}, "tie_monitor: every_n_steps must be >= 1, got 0"),
        ({"name": "tie_monitor", "eps": -1.0}, "tie_monitor: eps must be finite and >= 0, got -1.0"),
    ],
)
def test_bad_parameters(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("diagnostics", spec)
