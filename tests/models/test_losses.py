from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from morphlightning.cli import main
from morphlightning.data import Digits
from morphlightning.errors import ConfigError, ShapeError
from morphlightning.models import MarginHinge, MorphologicalClassifier

HINGE = {"name": "margin_hinge", "eps": 0.1, "cross_entropy": 0.5}


def by_hand(logits: list[float], label: int, eps: float) -> float:
    gaps = [logits[k] - logits[label] for k in range(len(logits)) if k != label]
    return max(min(max((gap + 2 * eps) / (2 * eps), 0.0), 1.0) for gap in gaps)


def test_the_hinge_is_its_formula() -> None:
    logits, labels = 0.3 * torch.randn(200, 5, dtype=torch.float64), torch.randint(5, (200,))
    expected = [by_hand(z, y, 0.15) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    assert 0 < sum(e in (0.0, 1.0) for e in expected) < 200  # clipped and not
    assert MarginHinge(0.15)(logits, labels).item() == pytest.approx(sum(expected) / 200, rel=1e-12)


def test_the_cross_entropy_sees_scaled_logits() -> None:
    logits, labels = torch.randn(20, 5), torch.randint(5, (20,))
    loss = MarginHinge(0.2, cross_entropy=0.25, scale=3.0)
    expected = MarginHinge(0.2)(logits, labels) + 0.25 * nn.functional.cross_entropy(3 * logits, labels)
    torch.testing.assert_close(loss(logits, labels), expected)
    loss.set_cross_entropy(0.0)
    torch.testing.assert_close(loss(logits, labels), MarginHinge(0.2)(logits, labels))


def test_gradients_are_those_of_finite_differences() -> None:
    loss = MarginHinge(0.4, cross_entropy=0.3).double()
    logits = 0.3 * torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (6,))
    scale = loss.log_scale.detach().clone().requires_grad_()

    def value(z: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"log_scale": log_scale}, (z, labels))

    assert torch.autograd.gradcheck(value, (logits, scale))


def test_misclassified_samples_have_no_gradient_of_the_hinge_and_one_of_the_cross_entropy() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 0.05]], requires_grad=True)
    (grad,) = torch.autograd.grad(MarginHinge(0.1)(logits, torch.tensor([0, 1])), logits)
    assert grad[0].eq(0).all()
    assert grad[1].ne(0).all()
    (grad,) = torch.autograd.grad(MarginHinge(0.1, 0.5)(logits, torch.tensor([0, 1])), logits)
    assert grad.ne(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    loss = MarginHinge(0.1, 0.5)
    logits, labels = torch.randn(8, 3).to(dtype), torch.randint(3, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.double(), labels).float())


def test_a_missing_rival_is_no_danger() -> None:
    logits = torch.tensor([[0.3, -torch.inf, 0.0]], requires_grad=True)
    value = MarginHinge(0.2, 0.1)(logits, torch.tensor([0]))
    (grad,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"eps": 0.1, "scale": -1.0}, {"eps": 0.1, "cross_entropy": -1.0}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"MarginHinge: .* > 0|MarginHinge: cross_entropy must be"):
        MarginHinge(**settings)


@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4, 3, 2), (4,)), ((4, 3), (5,))])
def test_bad_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(batch, classes\)"):
        MarginHinge(0.1)(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.long))


# ------------------------------------------------------------------------------------------------------ by name
def classifier() -> MorphologicalClassifier:
    return MorphologicalClassifier((1, 8, 8), channels=(4,), optimizer={"name": "adam", "lr": 0.01}, loss=HINGE)


def test_it_trains_by_name_and_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    model, data = classifier(), Digits(batch_size=64, train_size=256)
    trainer = L.Trainer(max_epochs=2, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(model, data)
    assert isinstance(model.data_loss, MarginHinge)
    assert model.data_loss.log_scale.item() != pytest.approx(MarginHinge(0.1).log_scale.item())
    model.data_loss.set_cross_entropy(0.01)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MorphologicalClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert again.hparams["loss"] == HINGE
    assert again.data_loss.eps == 0.1
    for name, value in model.data_loss.state_dict().items():
        assert torch.equal(again.data_loss.state_dict()[name], value)


def test_it_is_given_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "MorphologicalClassifier", "--model.in_shape", "[1,8,8]", "--model.channels", "[2]"]
    run = [
        "--data",
        "Digits",
        "--data.train_size",
        "64",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--run",
        "runs/x",
    ]
    assert main(["fit", *model, "--model.loss", "{name: margin_hinge, eps: 0.1}", *run]) == 0
    saved = torch.load(tmp_path / "runs/x/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["loss"] == {"name": "margin_hinge", "eps": 0.1}
    assert "data_loss.cross_entropy" in saved["state_dict"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("margin_hinge", r"missing 1 required positional argument: 'eps'; give its settings in a mapping"),
        ({"name": "margin_hinge", "radius": 1}, r"unexpected keyword argument 'radius'"),
        ({"name": "cross_entropy", "eps": 1}, "cross_entropy takes no settings, got eps"),
        ({"eps": 1}, "is unknown here; choose one of cross_entropy, multi_margin_loss, margin_hinge"),
    ],
)
def test_bad_names(loss: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MorphologicalClassifier((1, 8, 8), loss=loss)
