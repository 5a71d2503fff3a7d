"""Losses of lifted training against autograd, torch's own losses and numeric minimization."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import bregman as B
from morphlightning.bregman.losses import BregmanLoss, CrossEntropy, OutputLoss, SquaredError, output_loss
from morphlightning.errors import ConfigError, ShapeError

DOUBLE = torch.float64


def values(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=DOUBLE)


def probabilities(*shape: int) -> Tensor:
    return values(*shape).softmax(-1)


CASES: dict[str, tuple[Callable[[], OutputLoss], Callable[..., Tensor]]] = {
    "squared": (SquaredError, values),
    "squared_weighted": (lambda: SquaredError(2.5), values),
    "cross_entropy": (CrossEntropy, probabilities),
    "sigmoid": (lambda: BregmanLoss(nn.Sigmoid()), lambda *shape: values(*shape).sigmoid()),
    "tanh": (lambda: BregmanLoss(B.Tanh()), lambda *shape: values(*shape).tanh()),
    "relu": (lambda: BregmanLoss(nn.ReLU()), lambda *shape: values(*shape).relu()),
    "softmax": (lambda: BregmanLoss(nn.Softmax(-1)), probabilities),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[OutputLoss, Tensor, Tensor]:
    """A loss, outputs and targets."""
    torch.manual_seed(0)
    make, targets = CASES[request.param]
    return make(), values(50, 4).requires_grad_(), targets(50, 4)


def test_the_gradient_is_that_of_the_value(case: tuple[OutputLoss, Tensor, Tensor]):
    loss, z, y = case
    assert loss.value(z, y).shape == (50,)
    (expected,) = torch.autograd.grad(loss.value(z, y).sum(), z)
    torch.testing.assert_close(loss.gradient(z, y).detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_lipschitz_with_the_constant(case: tuple[OutputLoss, Tensor, Tensor]):
    loss, z, y = case
    z = z.detach()
    for scale in (1e-3, 0.1, 1.0, 10.0):
        other = z + scale * torch.randn_like(z)
        slopes = (loss.gradient(z, y) - loss.gradient(other, y)).norm(dim=1) / (z - other).norm(dim=1)
        assert float(slopes.max()) <= loss.lipschitz * (1 + 1e-9)


@pytest.mark.parametrize(
    ("loss", "z", "direction"),
    [
        (SquaredError(2.5), [1.0, 2.0], [1.0, 0.0]),
        (CrossEntropy(), [0.0, 0.0], [1.0, -1.0]),
        (BregmanLoss(nn.Tanh()), [0.0, 0.0], [1.0, 0.0]),
    ],
)
def test_the_constant_is_reached(loss: OutputLoss, z: list[float], direction: list[float]):
    at, step = torch.tensor([z], dtype=DOUBLE), 1e-4 * torch.tensor([direction], dtype=DOUBLE)
    moved = (loss.gradient(at + step, at) - loss.gradient(at, at)).norm() / step.norm()
    assert float(moved) == pytest.approx(loss.lipschitz, rel=1e-6)


def test_the_target_majorizes(case: tuple[OutputLoss, Tensor, Tensor]):
    """c/2 ||v - target||^2 lies above the loss, up to a constant that makes both equal at u."""
    loss, u, y = case
    u, c = u.detach(), loss.lipschitz
    target = loss.target(u, y)
    for scale in (0.1, 1.0, 10.0):
        v = u + scale * torch.randn_like(u)
        rise = c / 2 * ((v - target).square() - (u - target).square()).sum(1)
        assert (loss.value(v, y) - loss.value(u, y) <= rise + 1e-9).all()


@given(st.floats(0.05, 20), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_the_proximal_map_is_the_minimizer(rho: float, weight: float):
    torch.manual_seed(0)
    loss, v, y = SquaredError(weight), values(3, 2), values(3, 2)
    kept = v.clone()
    result = loss.prox_(kept, y, rho)
    assert result is kept
    z = result.clone().requires_grad_()
    (loss.value(z, y).sum() + rho / 2 * (z - v).square().sum()).backward()
    assert z.grad is not None
    assert float(z.grad.abs().max()) < 1e-12 * (1 + rho + weight)


def test_losses_without_a_proximal_map_say_so(case: tuple[OutputLoss, Tensor, Tensor]):
    loss, z, y = case
    if loss.is_quadratic:
        assert isinstance(loss, SquaredError)
        return
    with pytest.raises(NotImplementedError, match=f"{type(loss).__name__} has no closed form"):
        loss.prox_(z.detach().clone(), y, 1.0)


# ------------------------------------------------------------------------------------------------- against torch's own
def test_squared_error_is_half_the_sum_of_squares():
    z, y = values(5, 2, 3), values(5, 2, 3)
    assert float(SquaredError().value(z, y).sum()) == pytest.approx(0.5 * float(F.mse_loss(z, y, reduction="sum")))
    assert float(SquaredError()(z, y)) == pytest.approx(0.5 * float(F.mse_loss(z, y, reduction="sum")) / 5)


def test_the_loss_of_torch_for_sums_of_squares():
    loss, z, y = output_loss(nn.MSELoss(reduction="sum")), values(5, 3), values(5, 3)
    assert isinstance(loss, SquaredError)
    assert float(loss.value(z, y).sum()) == pytest.approx(float(F.mse_loss(z, y, reduction="sum")))


@pytest.mark.parametrize("given", [nn.CrossEntropyLoss(), F.cross_entropy, "cross_entropy"])
def test_cross_entropy_is_that_of_torch(given: object):
    loss, z = output_loss(given), values(7, 4)
    classes = torch.randint(4, (7,))
    torch.testing.assert_close(loss(z, classes), F.cross_entropy(z, classes), rtol=1e-12, atol=1e-12)
    soft = probabilities(7, 4)
    torch.testing.assert_close(loss(z, soft), F.cross_entropy(z, soft), rtol=1e-12, atol=1e-12)
    hard = F.one_hot(classes, 4)
    torch.testing.assert_close(loss(z, hard), F.cross_entropy(z, classes), rtol=1e-12, atol=1e-12)


def test_the_bregman_loss_of_sigmoid_is_binary_cross_entropy():
    loss, z = BregmanLoss(nn.Sigmoid()), values(6, 3)
    y = values(6, 3).sigmoid()
    expected = F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)
    of_y = torch.special.entr(y) + torch.special.entr(1 - y)
    torch.testing.assert_close(loss.value(z, y), expected - of_y.sum(1), rtol=1e-12, atol=1e-12)
    hard = y.round()  # whose entropy is 0
    expected = F.binary_cross_entropy_with_logits(z, hard, reduction="none").sum(1)
    torch.testing.assert_close(loss.value(z, hard), expected, rtol=1e-12, atol=1e-12)


def test_the_bregman_loss_of_softmax_is_cross_entropy_up_to_the_targets_entropy():
    z, y = values(6, 3), probabilities(6, 3)
    difference = CrossEntropy().value(z, y) - BregmanLoss(nn.Softmax(-1)).value(z, y)
    torch.testing.assert_close(difference, torch.special.entr(y).sum(1), rtol=1e-12, atol=1e-12)


def test_large_outputs_stay_finite():
    z, y = torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]])
    for loss in (CrossEntropy(), BregmanLoss(nn.Sigmoid()), BregmanLoss(nn.Softmax(-1))):
        assert loss.value(z, y).isfinite().all()
        assert loss.gradient(z, y).isfinite().all()


# ------------------------------------------------------------------------------------------------------- names, targets
def test_names_and_objects():
    assert isinstance(output_loss("squared_error"), SquaredError)
    assert isinstance(output_loss("cross_entropy"), CrossEntropy)
    own = BregmanLoss(nn.Tanh())
    assert output_loss(own) is own


@pytest.mark.parametrize("given", [nn.MSELoss(), nn.MSELoss(reduction="none"), F.mse_loss, "mse_loss"])
def test_means_are_refused_with_the_reason_and_what_to_do(given: object):
    with pytest.raises(ConfigError, match=r"cannot be lifted: means .* off by their number; 'squared_error'"):
        output_loss(given)


@pytest.mark.parametrize(
    "given",
    [
        nn.L1Loss(),
        F.l1_loss,
        nn.BCEWithLogitsLoss(),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=0),
        lambda z, y: (z - y).sum(),
        "hinge",
        None,
        3,
    ],
)
def test_unknown_losses_are_refused(given: object):
    with pytest.raises(ConfigError, match=r"cannot be lifted.*'squared_error', 'cross_entropy', BregmanLoss"):
        output_loss(given)


def test_targets_of_as_many_values_take_the_outputs_shape():
    z = torch.randn(5, 6, dtype=DOUBLE)
    for loss in (SquaredError(), BregmanLoss(nn.Identity())):
        y = torch.arange(30).view(5, 2, 3)
        found = loss.targets(y, z)
        assert found.shape == z.shape
        assert found.dtype == z.dtype
        assert torch.equal(found, y.flatten(1).double())
        for wrong in (torch.zeros(5, 5), torch.zeros(6, 5), torch.zeros(30), torch.zeros(())):
            with pytest.raises(ShapeError, match=r"\(5, 6\), the target "):
                loss.targets(wrong, z)


def test_classes_become_probabilities():
    z = torch.randn(3, 4, dtype=DOUBLE)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        found = CrossEntropy().targets(torch.tensor([0, 3, 1], dtype=dtype), z)
        assert found.dtype == DOUBLE
        assert torch.equal(found.argmax(1), torch.tensor([0, 3, 1]))
        assert torch.equal(found.sum(1), torch.ones(3, dtype=DOUBLE))


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(3, 5), torch.zeros(3, 1, dtype=torch.long)])
def test_targets_that_are_neither_classes_nor_probabilities_are_refused(target: Tensor):
    with pytest.raises(ShapeError, match=r"expected class indices \(batch,\) or probabilities \(3, 4\)"):
        CrossEntropy().targets(target, torch.zeros(3, 4))


@pytest.mark.parametrize("classes", [[0, 4], [0, -100], [-1, 2]])
def test_classes_out_of_range_are_refused(classes: list[int]):
    with pytest.raises(ShapeError, match="class indices from 0 to 3"):
        CrossEntropy().targets(torch.tensor(classes), torch.zeros(2, 4))


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(ShapeError, match="3 targets for 2 outputs"):
        CrossEntropy().targets(torch.tensor([0, 1, 2]), torch.zeros(2, 4))


def test_outputs_that_are_no_classes_are_refused():
    with pytest.raises(ShapeError, match=r"outputs must be \(batch, classes\), got \(3, 4, 2, 2\)"):
        CrossEntropy().targets(torch.zeros(3, dtype=torch.long), torch.zeros(3, 4, 2, 2))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_weights_out_of_range_are_refused(weight: float):
    with pytest.raises(ConfigError, match="weight must be > 0"):
        SquaredError(weight)


def test_no_samples():
    for loss, y in ((SquaredError(), torch.zeros(0, 4)), (CrossEntropy(), torch.zeros(0, dtype=torch.long))):
        z = torch.zeros(0, 4)
        y = loss.targets(y, z)
        assert loss.value(z, y).shape == (0,)
        assert loss.gradient(z, y).shape == (0, 4)
