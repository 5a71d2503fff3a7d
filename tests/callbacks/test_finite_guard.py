from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from morphlightning.callbacks import FiniteGuard
from morphlightning.errors import DataError, NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore:.*Using ModelCheckpoint with manual optimization.*")
NAN, INF = float("nan"), float("inf")


class Samples(Dataset[Any]):
    """Twelve samples; one of them, perhaps, is bad."""

    def __init__(self, value: float = 0.0, bad: int = -1, nested: bool = False) -> None:
        self.x = torch.linspace(0, 1, 36).reshape(12, 3)
        self.nested = nested
        if bad >= 0:
            self.x[bad, 1] = value

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        image = torch.tensor(i, dtype=torch.uint8)
        return {"pair": (self.x[i], image), "name": str(i)} if self.nested else (self.x[i], image)


class Loader(DataLoader[Any]):
    def sample_indices(self, batch_idx: int) -> list[int]:
        return list(range(batch_idx * 4, batch_idx * 4 + 4))


class Scaled(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Net(LightningModule):
    def __init__(
        self, loss_factor: float = 1.0, gradient_factor: float = 1.0, at: int = 1, manual: bool = False
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.loss_factor, self.gradient_factor, self.at = loss_factor, gradient_factor, at
        self.automatic_optimization = not manual
        self.before: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.before = {name: value.clone() for name, value in self.state_dict().items()}
        pair = batch["pair"] if isinstance(batch, dict) else batch
        bad = self.global_step == self.at
        hidden = Scaled.apply(self.first(pair[0]), self.gradient_factor if bad else 1.0)
        loss = self.second(hidden).square().mean() * (self.loss_factor if bad else 1.0)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()

        def closure() -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)

        optimizer.step(closure)
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(net: Net, data: Dataset[Any], folder: Path, guard: FiniteGuard | None = None, loader: type = Loader) -> None:
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard or FiniteGuard(), checkpoint],
    )
    trainer.fit(net, loader(data, 4, generator=torch.Generator()))


def assert_weights_are_those_before(net: Net) -> None:
    assert all(torch.equal(value, net.before[name]) for name, value in net.state_dict().items())


def test_clean_run_passes(tmp_path: Path) -> None:
    fit(Net(), Samples(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("nested", [False, True])
def test_bad_batch_names_samples(tmp_path: Path, value: float, nested: bool) -> None:
    where = r"batch\['pair'\]\[0\]" if nested else r"batch\[0\]"
    kind = "NaN" if value != value else "inf"
    expected = (
        rf"Training batch 1 of epoch 0 on rank 0: {where} of shape \(4, 3\) holds {kind} at positions \[2\] "
        r"\(samples \[6\] of the dataset\).*last checkpoint: .*epoch=0-step=1\.ckpt"
    )
    with pytest.raises(DataError, match=expected):
        fit(Net(at=-1), Samples(value, 6, nested), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["epoch=0-step=1.ckpt"]


def test_loader_without_sample_indices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"positions \[2\]; finite"):
        fit(Net(), Samples(NAN, 6), tmp_path, loader=DataLoader)


def test_infinite_batches_may_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"loss is (inf|nan)"):  # the loss is still looked at
        fit(Net(), Samples(INF, 6), tmp_path, FiniteGuard(check_batch=False))


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("factor", [NAN, INF])
def test_bad_loss(tmp_path: Path, factor: float, manual: bool) -> None:
    net = Net(loss_factor=factor, manual=manual)
    with pytest.raises(NonFiniteError, match=rf"The loss is {factor} in epoch 0, step 1, on rank 0"):
        fit(net, Samples(), tmp_path)
    assert_weights_are_those_before(net)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("factor", [NAN, INF])
def test_bad_gradient_names_the_first_parameter(tmp_path: Path, factor: float, manual: bool) -> None:
    net = Net(gradient_factor=factor, manual=manual)
    with pytest.raises(NonFiniteError, match=r"gradient of 'first\.weight' \(and of 1 more parameters\)"):
        fit(net, Samples(), tmp_path)
    assert_weights_are_those_before(net)


def test_huge_finite_gradients_pass(tmp_path: Path) -> None:
    fit(Net(gradient_factor=1e30), Samples(), tmp_path)  # their 2-norm would overflow


class Scaler:
    pass


def test_infinite_gradients_pass_under_loss_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphlightning.callbacks.finite._scaler", lambda trainer: Scaler())
    fit(Net(gradient_factor=INF, at=2), Samples(), tmp_path)  # the last step; a real scaler would skip it
    with pytest.raises(NonFiniteError, match="loss is nan"):
        fit(Net(loss_factor=NAN), Samples(), tmp_path)
