"""Messages and updates at ties, against brute force over active sets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import morphlightning.functional as mf
from morphlightning import backends, layers, registry
from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.functional.dense import max_plus
from morphlightning.pipeline import Pipeline

BACKENDS = ["eager", "numba"]
MESSAGES = ["adjoint", "chebyshev", "shift", "best", "target"]


def pulled(x: Tensor, w: Tensor, u: Tensor, heuristic, derivative="first") -> tuple[Tensor, Tensor]:
    """Messages to x and gradient of w."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = max_plus(x, w, Pipeline.parse(derivative, heuristic).policy)
    gx, gw = torch.autograd.grad(y, (x, w), u)
    return gx, gw


def slope(x: Tensor, w: Tensor, u: Tensor, h: Tensor) -> Tensor:
    """Directional derivatives (samples,) of <u, dilation(x)> along h, by the active sets."""
    scores = x[:, None] + w
    active = scores == scores.amax(-1, keepdim=True)
    return (u * torch.where(active, h[:, None], -math.inf).amax(-1)).sum(-1)


def tied_cases(count: int, seed: int = 0, samples: int = 1) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Small integers: x (samples, 6) and w (8, 6), with normal messages (samples, 8)."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x, w = (torch.randint(0, 2, s, generator=draw).double() for s in ((samples, 6), (8, 6)))
        made.append((x, -w, torch.randn(samples, 8, generator=draw, dtype=torch.float64)))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_best_descends_wherever_one_can(backend: str) -> None:
    """3000 random tied cases; against the best of all 64 vertices of the sup-norm ball."""
    vertices = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    found = []
    for x, w, u in tied_cases(60, samples=50):
        with backends.use(backend):
            h = -pulled(x, w, u, "best")[0]
        steepest = slope(
            x[:, None].flatten(0, 1).repeat_interleave(64, 0), w, u.repeat_interleave(64, 0), vertices.repeat(50, 1)
        )
        seen = slope(x, w, u, h / h.abs().amax(1, keepdim=True))
        assert (seen < -1e-12).all()
        found.append(seen / steepest.view(50, 64).amin(1))
    shares = torch.cat(found)
    assert len(shares) == 3000
    assert shares.mean() > 0.97
    assert shares.max() < 1 + 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_best_is_the_steepest_of_the_others(backend: str) -> None:
    others = ["adjoint", "chebyshev", "shift"]
    with backends.use(backend):
        for x, w, u in tied_cases(100, seed=1):
            norm = [m / m.abs().amax() for m in (pulled(x, w, u, name)[0] for name in others[1:])]
            norm += [
                m / m.abs().amax()
                for rule in ("first", "uniform", "all", "bouligand")
                if (m := pulled(x, w, u, "plain", rule)[0]).any()
            ]
            best = pulled(x, w, u, "best")[0]
            least = min(float(slope(x, w, u, -m)) for m in norm)
            assert float(slope(x, w, u, -best / best.abs().amax())) < least + 1e-9
            shared = pulled(x, w, u, "plain", "uniform")[0]
            torch.testing.assert_close(best.norm(), shared.norm())


def test_best_leaves_samples_without_a_tie_alone() -> None:
    x = torch.cat([torch.randn(5, 7, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)])
    w, u = torch.randn(4, 7, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    w[:, :2] = 5.0
    x[-1, :2] = 3.0
    x[:5, 0] -= 20
    gx, _ = pulled(x, w, u, "best")
    plain, _ = pulled(x, w, u, "plain")
    assert torch.equal(gx[:5], plain[:5])
    assert not torch.equal(gx[5], plain[5])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_adjoint_and_chebyshev_by_brute_force(backend: str, eps: float) -> None:
    for x, w, u in tied_cases(50, seed=2):
        scores = x + w
        active = scores >= scores.amax(-1, keepdim=True) - eps
        e = torch.where(active, -u[0][:, None], math.inf).amin(0)
        touched = e < math.inf
        e = torch.where(touched, e, 0.0)
        reached = torch.where(active, e, -math.inf).amax(-1)
        mu = 0.5 * (-u[0] - reached).amax().clamp_min(0)
        with backends.use(backend):
            adjoint = pulled(x, w, u, {"name": "adjoint", "eps": eps})[0][0]
            centred = pulled(x, w, u, {"name": "chebyshev", "eps": eps})[0][0]
        torch.testing.assert_close(adjoint, -e)
        torch.testing.assert_close(centred, torch.where(touched, -e - mu, 0.0))
        derivative = torch.where(active, -centred, -math.inf).amax(-1)
        torch.testing.assert_close((derivative + u[0]).abs().amax(), mu)


def test_chebyshev_is_nearest_to_the_message() -> None:
    """No other direction has a derivative nearer to -u in the sup norm."""
    draw = torch.Generator().manual_seed(3)
    for x, w, u in tied_cases(30, seed=3):
        h = -pulled(x, w, u, "chebyshev")[0]
        active = (s := x + w) == s.amax(-1, keepdim=True)

        def miss(h: Tensor, active: Tensor = active, u: Tensor = u) -> float:
            return float((torch.where(active, h, -math.inf).amax(-1) + u[0]).abs().amax())

        for _ in range(200):
            other = h + torch.randn(h.shape, generator=draw, dtype=torch.float64)
            assert miss(other[0]) > miss(h[0]) - 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_target_tends_to_the_adjunction(backend: str) -> None:
    draw = torch.Generator().manual_seed(4)
    x, w, u = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((9, 7), (5, 7), (9, 5)))
    with backends.use(backend):
        for centred, limit in ((False, "adjoint"), (True, "chebyshev")):
            small = {"name": "target", "tau": 1e-7, "reduction": "sum", "centred": centred, "clip": 10.0}
            torch.testing.assert_close(pulled(x, w, u, small)[0], pulled(x, w, u, limit)[0], atol=1e-6, rtol=0)


def test_target_reaches_a_target_that_can_be_reached() -> None:
    """If y - tau u is some dilation(z), the step x - tau message has exactly that output."""
    draw = torch.Generator().manual_seed(5)
    x, z, w = (torch.rand(s, generator=draw, dtype=torch.float64) for s in ((20, 6), (20, 6), (6, 6)))
    w = w - torch.eye(6, dtype=torch.float64).logical_not() * 0.5  # every input wins somewhere
    w.fill_diagonal_(3.0)
    y, goal = mf.dilation(x, w), mf.dilation(z, w)
    message, _ = pulled(x, w, (y - goal) / 0.5 / 20, {"name": "target", "tau": 0.5, "clip": 100.0})
    torch.testing.assert_close(mf.dilation(x - 0.5 * 20 * message, w), goal)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tau", [0.3, 5.0])
def test_projection_hits_the_target_and_nothing_is_nearer(backend: str, tau: float) -> None:
    draw = torch.Generator().manual_seed(6)
    for _ in range(40):
        x, w, u = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((1, 5), (3, 5), (1, 3)))
        with backends.use(backend):
            _, gw = pulled(x, w, u, {"name": "projection", "tau": tau})
        moved, goal = w - tau * gw, mf.dilation(x, w) - tau * u
        torch.testing.assert_close(mf.dilation(x, moved), goal)
        for p in (1, 2, math.inf):
            for _ in range(30):
                other = torch.minimum(w + torch.randn(w.shape, generator=draw, dtype=torch.float64), goal.T - x)
                at = torch.randint(5, (3,), generator=draw)
                rows = torch.arange(3)
                other[rows, at] = (goal.T - x)[rows, at]  # feasible: its maximum is the target
                for i in range(3):
                    assert (other - w)[i].norm(p=p) > (moved - w)[i].norm(p=p) - 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_projections_of_a_batch_add_up_and_are_counted(backend: str) -> None:
    draw = torch.Generator().manual_seed(7)
    x, w = (torch.randint(-2, 3, s, generator=draw).double() for s in ((6, 5), (4, 5)))
    w[0, 1] = -math.inf
    u = torch.randint(-2, 3, (6, 4), generator=draw).double()
    rule = {"name": "projection", "tau": 0.5, "reduction": "sum"}
    layer = layers.Dilation(5, 4, heuristic=[rule, "count_normalized"], initializer="zeros").double()
    layer.weight.data.copy_(w.nan_to_num(neginf=0.0))
    layer.mask.copy_(w > -math.inf)
    expected, count = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    for b in range(6):
        _, gw = pulled(x[b : b + 1], w, u[b : b + 1], rule)
        expected += gw
        count += gw != 0
    with backends.use(backend):
        layer(x).backward(u)
        torch.testing.assert_close(layer.weight.grad, expected)
        assert torch.equal(layers.reduce_statistics(layer)[""]["count"], count)
    assert layer.weight.grad[0, 1] == 0


def test_windowed_projection_and_messages_agree_with_the_dense_ones() -> None:
    """A window over the whole image is a dense operator."""
    draw = torch.Generator().manual_seed(8)
    x = torch.randint(0, 3, (4, 1, 5), generator=draw).double()
    w, u = (torch.randint(-2, 1, s, generator=draw).double() for s in ((3, 5), (4, 3)))
    for heuristic in [*MESSAGES, "projection", "lower_only", "best+projection"]:
        dense = pulled(x[:, 0], w, u, heuristic)
        layer = layers.Erosion1d(1, 3, 5, padding="valid", heuristic=heuristic).double()
        layer.weight.data.copy_(w[:, None])
        a = (-x).requires_grad_()
        layer(a).backward(-u[..., None])
        torch.testing.assert_close(-a.grad[:, 0], dense[0])
        torch.testing.assert_close(layer.weight.grad[:, 0], dense[1])


@pytest.mark.parametrize("make", [layers.Dilation, layers.Erosion])
def test_lower_only_never_raises_a_weight(make) -> None:
    layer = make(6, 4, heuristic="lower_only", derivative="bouligand", initializer="zeros")
    x = torch.randint(0, 2, (7, 6)).float()
    layer(x).backward(torch.randn(7, 4))
    assert (layer.weight.grad >= 0).all()
    assert (layer.weight.grad > 0).any()


@pytest.mark.parametrize("heuristic", [*MESSAGES, "projection", "lower_only"])
def test_missing_weights_and_rows_without_candidates(heuristic: str) -> None:
    x = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf] * 3, [0.0, 0.0, 0.0]], dtype=torch.float64)
    w = torch.tensor([[0.0, 0.0, -math.inf], [-1.0, 0.0, -1.0]], dtype=torch.float64)
    for backend in BACKENDS:
        with backends.use(backend):
            gx, gw = pulled(x, w, torch.tensor([[1.0, -1.0], [1.0, 1.0], [-2.0, 0.5]], dtype=torch.float64), heuristic)
        assert gx.isfinite().all()
        assert gw.isfinite().all()
        assert gw[0, 2] == 0


@pytest.mark.parametrize("heuristic", ["best", "bouligand", "projection"])
def test_lists_that_do_not_fit_are_made_in_parts(heuristic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    active = pytest.importorskip("morphlightning.ops.cpu.active")
    draw = torch.Generator().manual_seed(9)
    x, w = (torch.randint(0, 2, s, generator=draw).double() for s in ((11, 40), (18, 40)))
    u = torch.randn(11, 18, generator=draw, dtype=torch.float64)
    given = ("plain", "bouligand") if heuristic == "bouligand" else (heuristic, "first")
    expected = pulled(x, w, u, *given)
    for limit in (3000, 1):
        monkeypatch.setattr(active, "LIMIT", limit)
        for seen, right in zip(pulled(x, w, u, *given), expected, strict=True):
            torch.testing.assert_close(seen, right)


def test_soft_is_the_gradient_of_log_sum_exp() -> None:
    draw = torch.Generator().manual_seed(10)
    x, w, u = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((6, 9), (5, 9), (6, 5)))
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    y = torch.logsumexp(3.0 * (leaves[0][:, None] + leaves[1]), -1) / 3.0
    expected = torch.autograd.grad(y, leaves, u)
    for seen, right in zip(pulled(x, w, u, "plain", {"name": "soft", "beta": 3.0}), expected, strict=True):
        torch.testing.assert_close(seen, right)
    hard = pulled(x, w, u, "plain", "first")
    for beta, error in ((30.0, 1.0), (3000.0, 1e-9)):
        soft = pulled(x, w, u, "plain", {"name": "soft", "beta": beta})
        assert max(float((a - b).abs().max()) for a, b in zip(soft, hard, strict=True)) < error
    tied = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    gx, _ = pulled(*tied, torch.ones(1, 1, dtype=torch.float64), "plain", {"name": "soft", "beta": 50.0})
    torch.testing.assert_close(gx, torch.full_like(gx, 1 / 3))


@pytest.mark.parametrize("border", ["neutral", "constant", "reflect"])
def test_soft_on_windows(border: str) -> None:
    image = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    b = torch.randn(3, 3, 2, dtype=torch.float64)
    leaves = [image.clone().requires_grad_(), b.clone().requires_grad_()]
    y = mf.soft_erosion2d(*leaves, 4.0, border=border)
    u = torch.randn(y.shape, dtype=torch.float64)
    expected = torch.autograd.grad(y, leaves, u)
    hard = mf.erosion2d(*leaves, derivative={"name": "soft", "beta": 4.0}, border=border)
    torch.testing.assert_close(hard, mf.erosion2d(image, b, border=border))
    for seen, right in zip(torch.autograd.grad(hard, leaves, u), expected, strict=True):
        torch.testing.assert_close(seen, right)


def test_soft_counts_expected_numbers() -> None:
    layer = layers.Dilation(4, 2, derivative={"name": "soft", "beta": 2.0}, heuristic="count_normalized").double()
    x = torch.randn(5, 4, dtype=torch.float64)
    layer(x).backward(torch.tensor([[1.0, 0.0]] * 5, dtype=torch.float64))
    count = layers.reduce_statistics(layer)[""]["count"]
    expected = torch.softmax(2.0 * (x[:, None] + layer.weight.detach()), -1).sum(0)
    torch.testing.assert_close(count[0], expected[0])
    assert not count[1].any()


@pytest.mark.parametrize("spec", ["best", "projection", "target", "adjoint"])
def test_pseudo_gradients_have_no_derivative(spec: str) -> None:
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    y = max_plus(x, w, Pipeline.parse("first", spec).policy)
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotSupportedError, match="second derivative through"):
        gx.sum().backward()


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("heuristics", {"name": "best", "eps": -0.1}, "eps must be >= 0, got -0.1"),
        ("heuristics", {"name": "projection", "tau": 0.0}, "tau must be a finite number > 0, got 0.0"),
        ("heuristics", {"name": "target", "clip": -1.0}, "clip must be > 0, got -1.0"),
        ("heuristics", {"name": "target", "reduction": "none"}, "reduction must be 'mean' or 'sum', got 'none'"),
        ("heuristics", {"name": "projection", "accumulation": 0}, "accumulation must be >= 1, got 0"),
        ("derivatives", {"name": "soft", "beta": 0.0}, "beta must be a finite number > 0, got 0.0"),
    ],
)
def test_bad_parameters(kind: str, spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build(kind, spec)
