"""Which weights are alive and where messages go, as drawn during real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.callbacks import MessagePaths, WeightActivity
from morphlightning.callbacks.figures import activity, base, paths
from morphlightning.callbacks.figures.activity import draw_activity
from morphlightning.callbacks.figures.paths import LayerMessages, draw_paths
from morphlightning.errors import ConfigError
from morphlightning.layers import Dilation, Dilation1d, Dilation2d, Erosion, MorphLayer, MorphPool2d

IMAGES = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    in_shape = (1, 4, 4)

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(*layers)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.network(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, model: Model, *callbacks: Callback, **options: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        **{"max_epochs": 1} | options,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(IMAGES), batch_size=6))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "figures").glob("*.png"))


def dense() -> Model:
    torch.manual_seed(0)
    return Model(nn.Flatten(), Dilation(16, 5), Erosion(5, 3))


def touched(layer: MorphLayer, x: Tensor) -> Tensor:
    """How often each weight of a dense layer wins."""
    scores = (-x if isinstance(layer, Erosion) else x)[:, None] + layer.weight.detach()
    return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).sum(0)


# ------------------------------------------------------------------------------------------------- the activity
def test_activity_counts_the_messages_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, Tensor] = {}

    def kept(name: str, layer: MorphLayer, count: Tensor, *rest: Any) -> Figure:
        counts[name] = count
        return draw_activity(name, layer, count, *rest)

    monkeypatch.setattr(activity, "draw_activity", kept)
    model = Model(nn.Flatten(), Dilation(16, 5))
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)  # type: ignore[method-assign]
    expected = touched(model.network[1], IMAGES.flatten(1))
    fit(tmp_path, model, WeightActivity(2), max_epochs=3)
    assert torch.equal(counts["network.1"], expected.double())
    assert expected.sum() == 12 * 5
    names = [f"weight_activity-network.1-epoch={epoch:03d}-step={step:06d}.png" for epoch, step in ((1, 4), (2, 6))]
    assert files(tmp_path) == names
    assert model.network[1].site.ghosts.touches is None


def test_activity_shows_counts_the_dead_and_the_missing() -> None:
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[0, 5] = False
    layer, count = Dilation(16, 3, mask=mask), torch.zeros(3, 16)
    count[0, 1], count[0, 2] = 100, 1
    count[2] = 7
    figure = draw_activity("first", layer, count, (1, 4, 4), when="epoch 3, step 40")
    images = [axis.images[0] for axis in figure.axes[:3]]
    shown, norm = images[0].get_array(), images[0].norm
    assert shown.mask.nonzero() == (np.array([1]), np.array([1]))
    assert shown[0, 1] == 100
    colors = images[0].cmap(norm(shown))
    assert colors[0, 0].tolist() == [1, 1, 1, 1]  # dead: white
    assert colors[1, 1].tolist() == [0, 0, 0, 0]  # missing: the pattern behind
    assert colors[0, 2].tolist() == list(images[0].cmap(0.0))  # one message: the darkest colour
    pieces = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    text = "\n".join(pieces)
    assert (
        "first: Dilation (dilation), weight 3 x 16\nepoch 3, step 40: dead: 61.7 % of the weights, 1 of 3 units" in text
    )
    assert "white: dead, no message in the epoch; hatched: missing (-inf)" in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Dilation(7, 3), (3, 7)), (Dilation1d(2, kernel_size=5), (1, 5)), (Dilation2d(1, 2), (3, 3))],
)
def test_activity_of_every_kind_of_layer_can_be_drawn(layer: MorphLayer, shape: tuple[int, int]) -> None:
    figure = draw_activity("layer", layer, torch.ones_like(layer.weight), (1, 4, 4))
    assert figure.axes[0].images[0].get_array().shape == shape
    assert base.render(figure).std() > 0


def test_activity_of_no_layer_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"WeightActivity: Model holds no morphlightning\.layers\.MorphLayer"):
        fit(tmp_path, Model(nn.Flatten(), nn.Linear(16, 2)), WeightActivity())
    assert files(tmp_path) == []


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="WeightActivity: max_units must be 1 or more, got 0"):
        WeightActivity(max_units=0)
    with pytest.raises(ConfigError, match="MessagePaths: every_n_epochs must be 1 or more, got 0"):
        MessagePaths(0)


# ---------------------------------------------------------------------------------------------------- the paths
def assert_no_hooks(model: Model) -> None:
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, **options: Any) -> dict[str, LayerMessages]:
    seen: dict[str, LayerMessages] = {}

    def kept(found: dict[str, LayerMessages], when: str) -> Figure:
        seen.update(found)
        return draw_paths(found, when)

    monkeypatch.setattr(paths, "draw_paths", kept)
    fit(tmp_path, model, MessagePaths(2), **options)
    assert_no_hooks(model)
    return seen


def test_messages_of_a_stack_go_where_the_winners_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = dense(), IMAGES[:6].flatten(1)
    first, second = model.network[1], model.network[2]
    y = first(x).detach()
    with_message = torch.zeros(6, 5).scatter_(1, (-y[:, None] + second.weight.detach()).argmax(-1), 1.0)
    winners = (x[:, None] + first.weight.detach()).argmax(-1)
    pixels = torch.zeros(6, 16).scatter_add_(1, winners, with_message) > 0
    weights = torch.zeros(5, 16)
    for sample, unit in with_message.nonzero().tolist():
        weights[unit, winners[sample, unit]] = 1
    seen = watch(tmp_path, monkeypatch, model)
    assert list(seen) == ["network.1", "network.2"]
    shares = {part: seen["network.1"].share(part) for part in paths.PARTS}
    expected = {"outputs": with_message.mean(), "weights": weights.mean(), "inputs": pixels.float().mean()}
    assert shares == pytest.approx({part: float(share) for part, share in expected.items()})
    assert seen["network.2"].share("outputs") == 1
    assert seen["network.2"].share("inputs") == pytest.approx(float(with_message.mean()))
    (heat,) = seen["network.1"].heat
    assert torch.equal(heat > 0, pixels.any(0).view(4, 4))
    assert not seen["network.2"].heat
    assert files(tmp_path) == ["message_paths-epoch=000-step=000001.png"]


def test_the_map_is_the_mean_gradient_at_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Model(Dilation2d(1, 2), MorphPool2d(2), nn.Flatten(), nn.Linear(8, 1))
    x = IMAGES[:6].clone().requires_grad_()
    model.network(x).square().mean().backward()
    model.zero_grad()
    seen = watch(tmp_path, monkeypatch, model)
    (heat,) = seen["network.0"].heat
    assert torch.allclose(heat, x.grad.abs().mean((0, 1)))
    assert seen["network.1"].heat[0].shape == (4, 4)


def test_what_a_side_branch_sends_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.layer = nn.Linear(16, 8), Dilation(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.linear(x)
            y: Tensor = self.layer(hidden) + hidden.sum(-1, keepdim=True)
            return y

    seen = watch(tmp_path, monkeypatch, Model(nn.Flatten(), Both()))
    assert seen["network.1.layer"].share("inputs") == pytest.approx(1 / 8)


def test_epochs_in_between_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(tmp_path, monkeypatch, dense(), max_epochs=3)
    assert files(tmp_path) == [f"message_paths-epoch={e:03d}-step={s:06d}.png" for e, s in ((1, 3), (2, 5))]


def test_a_run_that_breaks_off_keeps_no_hooks(tmp_path: Path) -> None:
    model = dense()
    model.training_step = lambda *_, **__: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, model, MessagePaths())
    assert_no_hooks(model)


def test_bars_say_the_shares_and_maps_have_their_layers() -> None:
    def messages(layer: MorphLayer, *shares: float, heat: Tensor | None = None) -> LayerMessages:
        made = {part: [torch.tensor(share)] for part, share in zip(paths.PARTS, shares, strict=True)}
        return LayerMessages(layer, made, [] if heat is None else [heat])

    heat = torch.zeros(4, 4)
    heat[1, 2] = 0.5
    first = messages(Dilation(16, 5), 0.5, 3e-4, 0.0, heat=heat)
    second = messages(Erosion(5, 3), 1.0, 0.2, 0.05)
    figure = draw_paths({"first": first, "second": second}, "epoch 1, step 9")
    figure.canvas.draw()
    bars, pixels = figure.axes[:2]
    assert [text.get_text() for text in bars.texts] == ["50 %", "100 %", "0.03 %", "20 %", "0 %", "5 %"]
    assert bars.get_xlim() == (1e-4, 1)
    assert [tick.get_text() for tick in bars.get_yticklabels()] == [
        "first\nDilation (5, 16)",
        "second\nErosion (3, 5)",
    ]
    shown = pixels.images[0].get_array()
    assert shown.mask.sum() == 15
    assert shown[1, 2] == 0.5
    assert pixels.get_title() == "messages to the inputs of\nfirst"
    assert figure.get_suptitle() == "Where the messages of one batch go, epoch 1, step 9"
