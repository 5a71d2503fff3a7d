"""Manual optimization: the loop that ships, and loops that break the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from morphlightning.data import Digits
from morphlightning.errors import ConfigError, NonFiniteError, NotSupportedError
from morphlightning.interfaces import Batch, Group, Loop, StepContext, TrainerFacts
from morphlightning.models import MorphologicalClassifier

SHAPE = (1, 8, 8)
Make = Callable[..., L.Trainer]


def digits(**settings: Any) -> Digits:
    return Digits(**{"batch_size": 64, "train_size": 256} | settings)


def small(optimizer: Any, **settings: Any) -> MorphologicalClassifier:
    torch.manual_seed(0)
    return MorphologicalClassifier(SHAPE, channels=(4,), optimizer=optimizer, **settings)


SIGNUM = {"name": "signum", "lr": 2e-3}


def test_signum_trains_by_hand_and_counts_each_batch_once(make_trainer: Make) -> None:
    model, data, trainer = small(SIGNUM, regularizers=["l1"]), digits(train_size=None), make_trainer(max_epochs=3)
    assert not model.automatic_optimization
    trainer.fit(model, data)
    assert trainer.global_step == trainer.fit_loop.total_batch_idx + 1 == 3 * trainer.num_training_batches
    assert {"train/loss_epoch", "train/accuracy", "regularizer/l1"} <= set(trainer.logged_metrics)
    (metrics,) = trainer.test(model, data, verbose=False)
    assert metrics["test/accuracy"] > 0.6


def test_signum_takes_the_steps_of_its_definition(make_trainer: Make) -> None:
    model = small({"name": "signum", "lr": 0.5, "momentum": 0.0})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_trainer(max_steps=1).fit(model, digits())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * p.grad.sign())


def test_update_heuristics_act_in_a_manual_loop(make_trainer: Make) -> None:
    plain, normalized = small(SIGNUM), small(SIGNUM, heuristic="count_normalized")
    for model in (plain, normalized):
        make_trainer(max_steps=1).fit(model, digits())
    name = "backbone.0.pool1.weight"
    first, second = (dict(model.named_parameters())[name].grad for model in (plain, normalized))
    assert torch.equal(first.sign(), second.sign())
    assert not torch.equal(first, second)
    assert torch.equal(plain.head.weight.grad, normalized.head.weight.grad)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps")
@pytest.mark.parametrize("step", [4, 6])  # an epoch's end and inside an epoch
def test_signum_resumes_with_its_momentum(make_trainer: Make, tmp_path: Path, step: int) -> None:
    straight = small(SIGNUM)
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(max_steps=10, max_epochs=-1, enable_checkpointing=True, callbacks=[keep])
    trainer.fit(straight, digits())
    resumed = small(SIGNUM)
    again = make_trainer(max_steps=10, max_epochs=-1)
    again.fit(resumed, digits(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert again.global_step == 10
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(trainer.optimizers[0].state.values(), again.optimizers[0].state.values(), strict=True):
        assert torch.equal(a["mean"], b["mean"])


def test_a_nan_stops_a_manual_loop_before_its_step(make_trainer: Make) -> None:
    model = small(SIGNUM, loss=lambda x, y: x.sum() * float("nan"))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match="The loss is nan"):
        make_trainer().fit(model, digits())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---------------------------------------------------------------------------------------- loops of one's own
@dataclass
class Descent(Loop):
    """Plain gradient descent; a base for loops with a fault."""

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        self._params = [p for group in groups for p in group.params]

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self._params, lr=0.1)

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        def closure() -> Tensor:
            loss = context.loss(context.forward(batch.input), batch.target)
            context.backward(loss)
            return loss

        return {"loss": context.step(closure)}


def test_a_loop_of_descent_is_sgd(make_trainer: Make) -> None:
    by_loop, by_torch = small(Descent()), small({"name": "sgd", "lr": 0.1})
    for model in (by_loop, by_torch):
        make_trainer(max_epochs=2).fit(model, digits())
    for a, b in zip(by_loop.parameters(), by_torch.parameters(), strict=True):
        assert torch.equal(a, b)


@dataclass
class Idle(Descent):
    """Forgets its step."""

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return {}


@dataclass
class Twice(Descent):
    """Steps twice."""

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        super().step(batch, context)
        return super().step(batch, context)


@pytest.mark.parametrize(("loop", "times"), [(Idle(), 0), (Twice(), 2)])
def test_a_loop_steps_exactly_once(make_trainer: Make, loop: Loop, times: int) -> None:
    with pytest.raises(ConfigError, match=f"{type(loop).__name__}.step called context.step {times} times"):
        make_trainer().fit(small(loop), digits())


@dataclass
class Particular(Descent):
    """Refuses everything."""

    def refuse(self, facts: TrainerFacts) -> list[str]:
        return [f"world_size {facts.world_size}", f"precision {facts.precision}", f"strategy {facts.strategy}"]


def test_all_refusals_come_at_once_and_before_training(make_trainer: Make) -> None:
    said = r"(?s)Particular cannot train.*- world_size 1.*- precision 32-true.*- strategy SingleDeviceStrategy"
    with pytest.raises(NotSupportedError, match=said):
        make_trainer().fit(small(Particular()), digits())


def test_signum_refuses_scaled_gradients() -> None:
    model = small(SIGNUM)
    facts = TrainerFacts("16-mixed", "SingleDeviceStrategy", 1, None, 1)
    assert "bf16-mixed" in model.optimizer_component.refuse(facts)[0]
    assert model.optimizer_component.refuse(facts._replace(precision="bf16-mixed")) == []


@dataclass
class Picky(Descent):
    """Cannot train convolutions."""

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        bad = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        if bad:
            raise NotSupportedError(f"Picky cannot train {', '.join(bad)}")
        super().bind(network, groups)


def test_a_loop_names_the_layers_that_it_cannot_train(make_trainer: Make) -> None:
    with pytest.raises(NotSupportedError, match=r"backbone\.0\.conv1"):
        make_trainer().fit(small(Picky()), digits())


@dataclass
class Remembering(Descent):
    """Counts how often it saw each label; state of its own, built in bind."""

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        super().bind(network, groups)
        self.seen = torch.zeros(10, dtype=torch.int64)

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        self.seen += context.all_reduce(batch.target.bincount(minlength=10))
        assert batch.indices is None
        return super().step(batch, context) | {"seen": self.seen.sum().float()}

    def aux_state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_aux_state(self, state: Mapping[str, Tensor]) -> None:
        self.seen = state["seen"].clone()

    def to_config(self) -> str:
        return "remembering"


@pytest.fixture
def remembering() -> Any:
    from morphlightning import registry

    with registry.registered("optimizers", "remembering", Remembering):
        yield


@pytest.mark.usefixtures("remembering")
def test_auxiliary_state_is_saved_and_restored(make_trainer: Make, tmp_path: Path) -> None:
    first, model = make_trainer(max_epochs=1), small("remembering")
    first.fit(model, digits())
    first.save_checkpoint(tmp_path / "first.ckpt")
    kept = model.optimizer_component.seen.clone()
    assert kept.sum() == 256
    assert first.logged_metrics["train/seen"] == 256
    again, resumed = make_trainer(max_epochs=2), small("remembering")
    again.fit(resumed, digits(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert torch.equal(resumed.optimizer_component.seen, 2 * kept)
    loaded = MorphologicalClassifier.load_from_checkpoint(tmp_path / "first.ckpt")
    make_trainer(max_steps=1).fit(loaded, digits())
    assert loaded.optimizer_component.seen.sum() == 64  # a run that is not resumed begins anew, as its optimizer does


@pytest.mark.usefixtures("remembering")
def test_auxiliary_state_of_another_number_of_processes(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(small("remembering"), digits())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    checkpoint = torch.load(tmp_path / "first.ckpt", weights_only=True)
    checkpoint["morphlightning"]["auxiliary"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(ConfigError, match="Remembering for 2 processes, this run has 1"):
        make_trainer(max_epochs=2).fit(small("remembering"), digits(), ckpt_path=tmp_path / "two.ckpt")


class Indexed(Callback):
    """Hands batches over with the indices of their samples, as a loader of one's own may."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch.append(torch.tensor(trainer.train_dataloader.sample_indices(batch_idx)))


@dataclass
class Indices(Descent):
    """Keeps the indices it saw."""

    def bind(self, network: nn.Module, groups: Sequence[Group]) -> None:
        super().bind(network, groups)
        self.indices: list[int] = []

    def step(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        assert batch.indices is not None
        self.indices += batch.indices.tolist()
        return super().step(batch, context)


def test_indices_reach_the_loop_where_the_loader_gives_them(make_trainer: Make) -> None:
    model = small(Indices())
    make_trainer(callbacks=[Indexed()]).fit(model, digits())
    assert sorted(model.optimizer_component.indices) == list(range(256))
