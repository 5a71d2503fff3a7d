"""Update heuristics in LightningModules that are not ours, and in plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import morphlightning
from morphlightning.callbacks import MorphUpdates
from morphlightning.data import Digits
from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation
from morphlightning.models import MorphologicalClassifier, build_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
Make = Callable[..., L.Trainer]


class Foreign(L.LightningModule):
    """Somebody's own module with one of our layers."""

    def __init__(self, heuristic: str = "count_normalized") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), Dilation(64, 20, heuristic=heuristic), nn.Linear(20, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def digits() -> Digits:
    return Digits(batch_size=64, train_size=256)


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_the_callback_makes_heuristics_act(make_trainer: Make) -> None:
    by_trainer, by_hand = Foreign(), Foreign()
    make_trainer(callbacks=[MorphUpdates()], max_epochs=2).fit(by_trainer, digits())
    data, optimizer = digits(), by_hand.configure_optimizers()
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            by_hand.training_step(batch, 0).backward()
            morphlightning.apply_update_heuristics(by_hand)
            optimizer.step()
    for a, b in zip(parameters(by_trainer), parameters(by_hand), strict=True):
        assert torch.equal(a, b)
    plain = Foreign("plain")
    make_trainer(max_epochs=2).fit(plain, digits())
    assert not torch.equal(plain.network[1].weight, by_trainer.network[1].weight)


def test_the_callback_tells_heuristics_the_rate(make_trainer: Make) -> None:
    plain, clipped = Foreign("plain"), Foreign("radius_clipped")
    for module in (plain, clipped):
        make_trainer(callbacks=[MorphUpdates()], max_steps=1).fit(module, digits())
    start = Foreign().network[1].weight
    plain_step, clipped_step = ((module.network[1].weight - start).abs().max() for module in (plain, clipped))
    assert 0 < clipped_step < plain_step


class MorphDescended(Foreign):
    """The same under morph_sgd."""

    def __init__(self) -> None:
        super().__init__("plain")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self, {"name": "morph_sgd", "radius_clip": 0.3, "other_lr": 0.1})


def test_morph_sgd_steps_in_a_module_of_somebody_else(make_trainer: Make) -> None:
    module = MorphDescended()
    start = module.network[1].weight.detach().clone()
    make_trainer(callbacks=[MorphUpdates()]).fit(module, digits())
    assert not torch.equal(module.network[1].weight, start)
    with pytest.raises(ConfigError, match=r"the optimizer reads statistics of max-plus layers.*MorphUpdates"):
        make_trainer().fit(MorphDescended(), digits())


def test_without_the_callback_the_second_step_says_so(make_trainer: Make) -> None:
    with pytest.raises(ConfigError, match=r"CountNormalized\) were never applied.*MorphUpdates"):
        make_trainer().fit(Foreign(), digits())


def test_the_callback_leaves_our_own_models_alone(make_trainer: Make) -> None:
    def train(callbacks: list[Any]) -> list[Tensor]:
        torch.manual_seed(0)
        model = MorphologicalClassifier((1, 8, 8), channels=(4,), heuristic="count_normalized")
        make_trainer(max_epochs=2, callbacks=callbacks).fit(model, digits())
        return parameters(model)

    for a, b in zip(train([]), train([MorphUpdates()]), strict=True):
        assert torch.equal(a, b)
