"""One training run, started by the tests in a process of its own (two with --devices 2).

Prints `weights <sha256>` of the parameters when the fit is over, or when it ended with an error.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import morphlightning  # noqa: F401 - before lightning, as the README asks
from morphlightning.callbacks import default_callbacks
from morphlightning.checkpoint_io import SafeCheckpointIO

FAULTS = ("none", "handwritten", "plain_backward", "inplace", "nan_batch", "nan_loss", "plugins")
SAMPLES, BATCH = 64, 4


class ResumableLoader(DataLoader[Any]):
    """Order from (seed, epoch) alone, and the number of batches done in its state."""

    done = skip = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["done"] % len(self)

    def sample_indices(self, batch_idx: int) -> list[int]:
        return list(self.batch_sampler)[batch_idx]

    def __iter__(self) -> Any:
        skip, self.skip, self.done = self.skip, 0, 0
        for batch in super().__iter__():
            self.done += 1
            if self.done > skip:
                yield batch


class Net(LightningModule):
    def __init__(self, fault: str = "none", bad_rank: int = 1, bad_batch: int = 3, slow: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))
        self.fault, self.bad_rank, self.bad_batch, self.slow = fault, bad_rank, bad_batch, slow
        self.automatic_optimization = fault not in ("handwritten", "plain_backward")
        self.before = ""

    def configure_callbacks(self) -> list[Callback]:
        return default_callbacks()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        time.sleep(self.slow)
        x, y = batch
        loss = nn.functional.cross_entropy(self.body(x), y)
        if self.fault == "nan_loss" and batch_idx == self.bad_batch and self.global_rank == self.bad_rank:
            loss = loss * float("nan")
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        if self.fault == "plain_backward":
            nn.functional.cross_entropy(self.body(x), y).backward()
        else:
            parameters = list(self.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
        optimizer.step()
        return None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.before = digest(self)

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.fault == "inplace":
            with torch.no_grad():
                self.body[0].weight.add_(1e-3 * batch[0].mean())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        time.sleep(self.slow)
        self.log("val", nn.functional.cross_entropy(self.body(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class FailAt(Callback):
    """Sends SIGTERM to this process after the given step, or says that training is under way."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def digest(module: nn.Module) -> str:
    content = hashlib.sha256()
    for parameter in module.parameters():
        content.update(parameter.detach().numpy().tobytes())
    return content.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--bad-rank", type=int, default=1)
    parser.add_argument("--root", required=True)
    parser.add_argument("--resume")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--every", type=int, default=None)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--sigterm-at", type=int, default=-1)
    parser.add_argument("--sigterm-rank", type=int, default=0)
    parser.add_argument("--validate", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if arguments.fault == "plugins":
        from morphlightning import registry

        registry.fingerprint = lambda: f"what rank {rank} has"
    torch.manual_seed(1)
    x, y = torch.randn(SAMPLES, 6), torch.randint(0, 3, (SAMPLES,))
    if arguments.fault == "nan_batch":
        x[17] = float("nan")
    data = TensorDataset(x, y)
    sampler = DistributedSampler(data, arguments.devices, rank, shuffle=True, seed=5)
    loader = ResumableLoader(data, BATCH, sampler=sampler, generator=torch.Generator())
    validation = DataLoader(data, 8, generator=torch.Generator()) if arguments.validate else None
    torch.manual_seed(7 + rank)
    trainer = Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        max_epochs=arguments.epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=arguments.root,
        num_sanity_val_steps=0,
        plugins=[SafeCheckpointIO()],
        callbacks=[
            FailAt(arguments.sigterm_at, arguments.sigterm_rank),
            ModelCheckpoint(
                arguments.root,
                save_top_k=-1,
                every_n_train_steps=arguments.every,
                every_n_epochs=None if arguments.every else 1,
                save_on_train_epoch_end=None if arguments.every else True,
            ),
        ],
    )
    net = Net(arguments.fault, arguments.bad_rank, slow=arguments.slow)
    try:
        trainer.fit(net, loader, validation, ckpt_path=arguments.resume)
    except (Exception, SIGTERMException):
        print(f"rank {rank} unchanged {digest(net) == net.before}", flush=True)
        raise
    print(f"rank {rank} weights {digest(net)}", flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
