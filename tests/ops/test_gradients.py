"""Gradients of the operators: without ties the derivative, with ties what the rule says, by brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import morphlightning.functional as mf
from morphlightning.errors import NotSupportedError
from morphlightning.ops import eager

RULES = ["first", "uniform", "all", "bouligand"]
BORDERS = ["neutral", "reflect", "replicate", "circular", "constant"]


def reals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def integers(*shape: int, seed: int = 0, low: int = -1, high: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).double()


@pytest.mark.parametrize(
    ("operator", "rule"),
    [
        *itertools.product([mf.dilation, mf.erosion, mf.adjoint_dilation, mf.adjoint_erosion], RULES),
        # the second stage of an opening ties wherever it gives back its input: rules that send more than the message
        # count such an input twice
        *itertools.product([mf.opening, mf.closing], ["first", "uniform"]),
    ],
)
def test_gradcheck_dense(operator, rule: str) -> None:
    arguments = reals(3, 4 if "adjoint" in operator.__name__ else 5), reals(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x, w: operator(x, w, derivative=rule), arguments)
    if rule == "first":
        assert torch.autograd.gradgradcheck(lambda x, w: operator(x, w, derivative=rule), arguments)


@pytest.mark.parametrize(
    ("operator", "border", "rule"),
    [
        *itertools.product([mf.erosion2d], BORDERS, ["first", "bouligand"]),
        *itertools.product([mf.dilation2d], ["neutral", "constant"], RULES),
    ],
)
def test_gradcheck_windows(operator, border: str, rule: str) -> None:
    x, b = reals(1, 4, 3, 3), reals(2, 2, 2, 2, seed=1)

    def run(x: Tensor, b: Tensor) -> Tensor:
        return operator(x, b, groups=2, border=border, stride=(1, 2), value=0.1, derivative=rule)

    assert torch.autograd.gradcheck(run, (x, b))
    if rule == "first":
        assert torch.autograd.gradgradcheck(run, (x, b))


@pytest.mark.parametrize(
    "run",
    [
        lambda x, b: mf.dilation1d(x[:, :, 0], b[0, 0, 0], padding=1),
        lambda x, b: mf.dilation2d(x, b, merge="sum", groups=1),
        lambda x, b: mf.erosion2d(x, b, dilation=2, padding="valid"),
        lambda x, b: mf.erosion3d(x[:, None], b[:1, :1]),
        lambda x, b: mf.opening2d(x, b[:, 0]),
        lambda x, b: mf.closing2d(x, b),
        lambda x, b: mf.gradient2d(x, b[:, 0]),
        lambda x, b: mf.white_tophat2d(x, b[0, 0]),
        lambda x, b: mf.black_tophat2d(x, b[:, 0]),
    ],
)
def test_gradcheck_of_other_calls(run) -> None:
    assert torch.autograd.gradcheck(run, (reals(1, 2, 5, 4), reals(2, 2, 2, 2, seed=3)))


def dense_pull_back(x: Tensor, w: Tensor, gy: Tensor, rule: str, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """What each rule sends, sample by sample and row by row."""
    gx, gw = torch.zeros_like(x), torch.zeros_like(w)
    for b in range(len(x)):
        scores = x[b] + w
        top = scores.amax(-1, keepdim=True)
        active = (top - scores <= eps) & (top > -math.inf)
        mass = (active * gy[b, :, None].clamp_min(0)).sum(0)
        for i, u in enumerate(gy[b].tolist()):
            tied = active[i].nonzero()[:, 0].tolist()
            if not tied or u == 0:
                continue
            winner = int((scores[i] == top[i]).nonzero()[0])
            cells = weights = tied if rule in ("uniform", "all") else [winner]
            if rule == "bouligand":
                cells, weights = (tied, tied) if u > 0 else ([min(tied, key=lambda j: float(mass[j]))], [winner])
            share = u / len(tied) if rule == "uniform" else u
            gx[b, cells] += share
            gw[i, weights] += share
    return gx, gw


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 1.0]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_ties_dense(rule: str, seed: int, eps: float) -> None:
    x, w = integers(4, 5, seed=seed), integers(6, 5, seed=seed + 1)
    w[torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = -math.inf
    gy = integers(4, 6, seed=seed + 2, low=-3, high=4)
    derivative = rule if rule == "first" else {"name": rule, "eps": eps}
    x.requires_grad_(), w.requires_grad_()
    seen = torch.autograd.grad(mf.dilation(x, w, derivative=derivative), (x, w), gy)
    expected = dense_pull_back(x.detach(), w.detach(), gy, rule, eps)
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b)
    eroded = torch.autograd.grad(mf.erosion(-x, w, derivative=derivative), (x, w), -gy)
    for a, b in zip(eroded, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_missing_weights_and_inputs_stay_out(rule: str) -> None:
    x, w = integers(3, 5), integers(4, 5, seed=1)
    w[0] = -math.inf
    w[1, 2:] = -math.inf
    x[0] = -math.inf
    x[1, 1] = -math.inf
    x.requires_grad_(), w.requires_grad_()
    y = mf.dilation(x, w, derivative={"name": rule} if rule == "first" else {"name": rule, "eps": math.inf})
    gx, gw = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    for g, a in ((gx, x), (gw, w)):
        assert not g.isnan().any()
        assert not g[a == -math.inf].any()
        assert g.any()


@pytest.mark.parametrize("rule", RULES[1:])
def test_pseudo_gradients_have_no_second_derivative(rule: str) -> None:
    x, w = reals(2, 3), reals(2, 3, seed=1)
    (gx,) = torch.autograd.grad((mf.dilation(x, w, derivative=rule) ** 2).sum(), x, create_graph=True)
    with pytest.raises(NotSupportedError, match=r"second derivative through .*use derivative='first'"):
        torch.autograd.grad(gx.sum(), w)


def saved_bytes(run) -> int:
    """Bytes of distinct storages that a forward pass keeps for its backward pass, leaves aside."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_first_keeps_indices_only() -> None:
    x, w = torch.randn(64, 200, requires_grad=True), torch.randn(30, 200, requires_grad=True)
    assert saved_bytes(lambda: mf.dilation(x, w)) == 64 * 30 * 4
    image, b = torch.randn(4, 8, 16, 16, requires_grad=True), torch.randn(8, 5, 5, requires_grad=True)
    assert saved_bytes(lambda: mf.dilation2d(image, b)) == image.numel() * 4
    # the other rules keep a gap beside each index, and the input and the weight
    extra = saved_bytes(lambda: mf.dilation(x, w, derivative="bouligand"))
    assert extra <= 64 * 30 * 8 + x.untyped_storage().nbytes() + w.untyped_storage().nbytes()
    chained = saved_bytes(lambda: mf.erosion(mf.dilation(x, w), torch.randn(20, 30, requires_grad=True)))
    assert chained == 64 * (30 + 20) * 4


@pytest.mark.parametrize("rule", RULES)
def test_chunks_change_nothing(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        x, w, b = integers(7, 5), integers(6, 5, seed=1), integers(2, 3, 3, 2, seed=2)
        image, gy = integers(5, 3, 4, 5, seed=3), integers(7, 6, seed=4)
        for a in (x, w, b, image):
            a.requires_grad_()
        derivative = rule if rule == "first" else {"name": rule, "eps": 0.5}
        y, z = mf.dilation(x, w, derivative=derivative), mf.dilation2d(image, b, derivative=derivative)
        soft = mf.soft_dilation(x, w, 2.0)
        loss = (y * gy).sum() + (z * integers(*z.shape, seed=5)).sum() + soft.sum()
        return [y, z, soft, *torch.autograd.grad(loss, (x, w, b, image))]

    expected = run()
    monkeypatch.setattr(eager, "BUDGET", 1)
    for seen, right in zip(run(), expected, strict=True):
        torch.testing.assert_close(seen, right, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("border", BORDERS)
def test_empty_batches(rule: str, border: str) -> None:
    x, w = torch.zeros(0, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    mf.dilation(x, w, derivative=rule).sum().backward()
    image, b = torch.zeros(0, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    y = mf.erosion2d(image, b, border=border, derivative=rule)
    assert y.shape == (0, 3, 4, 5)
    y.sum().backward()
    for a in (x, w, image, b):
        assert a.grad.shape == a.shape
        assert not a.grad.any()
    with torch.no_grad():
        assert mf.closing2d(image, b, border=border).shape == image.shape
        assert mf.soft_dilation(x, w).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["first", "bouligand"])
def test_half_precision_scores_are_single(dtype: torch.dtype, rule: str) -> None:
    """Rounding to 8 bits makes ties of its own; scores do not round, outputs do."""
    x = torch.tensor([[256.0, 257.0]]).to(dtype).requires_grad_()
    w = torch.tensor([[0.5, 0.25]]).to(dtype).requires_grad_()
    x32, w32 = x.detach().float().requires_grad_(), w.detach().float().requires_grad_()
    y, y32 = mf.dilation(x, w, derivative=rule), mf.dilation(x32, w32, derivative=rule)
    assert y.dtype == dtype
    assert torch.equal(y, y32.to(dtype))
    y.sum().backward()
    y32.sum().backward()
    for a, b in ((x, x32), (w, w32)):
        assert a.grad.dtype == dtype
        assert torch.equal(a.grad.float(), b.grad)
    mixed = mf.dilation2d(torch.randn(1, 1, 4, 4).to(dtype), torch.randn(3, 3))
    assert mixed.dtype == dtype


def test_large_half_precision_images_do_not_overflow_at_the_border() -> None:
    x = torch.full((1, 1, 4, 4), -60000.0, dtype=torch.float16)
    assert (mf.dilation2d(x, 3) == -60000).all()
    assert (mf.erosion2d(-x, 3) == 60000).all()


def test_autocast() -> None:
    torch.manual_seed(0)
    first, last, w = torch.nn.Linear(8, 6), torch.nn.Linear(5, 2), torch.randn(5, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = first(torch.randn(3, 8))
        dilated = mf.dilation(hidden, w)
        y = last(dilated)
    assert hidden.dtype == dilated.dtype == y.dtype == torch.bfloat16
    assert torch.equal(dilated, mf.dilation(hidden.float(), w).bfloat16())
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32
    assert first.weight.grad.any()


def test_gradients_of_one_argument_alone() -> None:
    for x_needs, w_needs in itertools.product((False, True), repeat=2):
        x, w = reals(3, 4).detach().requires_grad_(x_needs), reals(2, 4).detach().requires_grad_(w_needs)
        y = mf.dilation(x, w, derivative="uniform")
        assert y.requires_grad == (x_needs or w_needs)
        if y.requires_grad:
            y.sum().backward()
            assert (x.grad is not None, w.grad is not None) == (x_needs, w_needs)


def test_nan_reaches_values_and_the_message_of_a_nan_loss_reaches_gradients() -> None:
    x, b = torch.zeros(1, 1, 5, requires_grad=True), torch.zeros(3, requires_grad=True)
    with torch.no_grad():
        x[..., 1] = math.nan
    y = mf.dilation1d(x, b)
    assert y.isnan().flatten().tolist() == [True, True, True, False, False]
    y.sum().backward(torch.tensor(math.nan))
    assert b.grad.isnan().any()
