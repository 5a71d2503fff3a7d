from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from morphlightning_plugins.regularizers import JacobianNorm
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.data import Digits
from morphlightning.errors import DtypeError, NotSupportedError, TrainingWarning
from morphlightning.interfaces import RegularizerContext
from morphlightning.models import MorphologicalClassifier


def term(regularizer: JacobianNorm, network: nn.Module, x: Tensor) -> Tensor:
    return regularizer.term(network, RegularizerContext(x, network(x), step=0, dataset_size=len(x)))


def smooth() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def exact(network: nn.Module, x: Tensor) -> Tensor:
    """The mean of |J|_F^2, row by row of the Jacobian."""
    rows = [torch.autograd.functional.jacobian(lambda x: network(x[None])[0], one, create_graph=True) for one in x]
    return torch.stack([row.square().sum() for row in rows]).mean()


def test_many_directions_give_the_norm_and_its_gradient() -> None:
    network, x = smooth(), torch.randn(4, 2, 3, dtype=torch.float64)
    expected = exact(network, x)
    found = term(JacobianNorm(weight=0.5, projections=1500), network, x)
    torch.testing.assert_close(found, 0.5 * expected, rtol=0.05, atol=0)
    weights = list(network.parameters())[:3]
    grads = torch.autograd.grad(found, weights)
    for one, right in zip(grads, torch.autograd.grad(0.5 * expected, weights), strict=True):
        torch.testing.assert_close(one, right, rtol=0.15, atol=0.03)


def test_of_one_output_one_direction_is_exact() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(term(JacobianNorm(weight=1.0), network, x), exact(network, x))


@pytest.mark.parametrize(
    "network",
    [
        lambda: nn.Sequential(layers.Dilation(6, 5), layers.Erosion(5, 4)),
        lambda: nn.Sequential(layers.SignedDilation(6, 5), layers.MeanShift(5).eval(), layers.SignedErosion(5, 4)),
    ],
)
def test_on_max_plus_networks_it_is_the_number_of_outputs_and_says_so(network: Any) -> None:
    """The Jacobian has one entry 1 or -1 in each row."""
    network, x = network().double(), torch.randn(200, 6, dtype=torch.float64)
    with pytest.warns(TrainingWarning, match=r"number of outputs almost everywhere.*margin_hinge"):
        JacobianNorm().bind(network)
    torch.testing.assert_close(exact(network, x[:5]).detach(), torch.tensor(4.0, dtype=torch.float64))
    found = term(JacobianNorm(weight=1.0, projections=100), network, x)
    torch.testing.assert_close(found, torch.tensor(4.0, dtype=torch.float64), rtol=0.04, atol=0)
    assert not found.requires_grad  # and its gradient by the weights does not exist


def test_linear_layers_around_max_plus_learn_and_max_plus_weights_do_not() -> None:
    network = nn.Sequential(nn.Linear(6, 5), layers.Dilation(5, 4), nn.Linear(4, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JacobianNorm().bind(network)
    x = torch.randn(30, 6, dtype=torch.float64)
    found = term(JacobianNorm(weight=1.0, projections=200), network, x)
    torch.testing.assert_close(found, exact(network, x), rtol=0.08, atol=0)
    found.backward()
    assert network[0].weight.grad.abs().sum() > 0
    assert network[2].weight.grad.abs().sum() > 0
    assert network[1].weight.grad is None or not network[1].weight.grad.any()


def test_it_leaves_buffers_and_the_mode_alone() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    x = torch.randn(8, 6)
    output = network(x)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    JacobianNorm().term(network, RegularizerContext(x, output, 0, 8)).backward()
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert not x.requires_grad


class Once(torch.autograd.Function):
    """The square, whose derivative has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


def test_what_cannot_be_differentiated_twice_is_refused() -> None:
    x = torch.randn(4, 6)
    with pytest.raises(NotSupportedError, match=r"jacobian: .*cannot be differentiated twice"):
        term(JacobianNorm(), nn.Sequential(nn.Linear(6, 5), Squared(), nn.Linear(5, 3)), x)
    pseudo = layers.Dilation(5, 3, derivative={"name": "bouligand", "eps": 0.1})
    with pytest.raises(NotSupportedError, match=r"jacobian: second derivative through .*derivative='first'"):
        term(JacobianNorm(), nn.Sequential(nn.Linear(6, 5), pseudo, nn.Linear(3, 3)), x)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="weight"):
        JacobianNorm(weight=-1.0)
    with pytest.raises(ValueError, match="projections"):
        JacobianNorm(projections=0)
    context = RegularizerContext(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3), 0, 2)
    with pytest.raises(DtypeError, match="floating-point"):
        JacobianNorm().term(nn.Identity(), context)


def test_training_with_it_makes_derivatives_smaller(tmp_path: Path) -> None:
    def fit(weight: float) -> float:
        torch.manual_seed(0)
        model = MorphologicalClassifier((1, 8, 8), channels=(4,), pool="max", optimizer={"name": "adam", "lr": 0.01})
        model.regularizers["jacobian"] = JacobianNorm(weight=weight)
        data = Digits(batch_size=64, train_size=320)
        L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(model, data)
        images = next(iter(data.train_dataloader()))[0]
        return float(exact(model.eval(), images[:16]).detach())

    assert fit(0.1) < 0.5 * fit(0.0)
