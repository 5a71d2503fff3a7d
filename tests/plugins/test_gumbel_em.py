"""Weights of dilations by EM under Gumbel noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from morphlightning_plugins.initializers import GumbelEM, Residual
from scipy import optimize, special
from torch import Tensor, nn

from morphlightning.interfaces import SiteSpec
from morphlightning.layers import Dilation, Erosion, initialize
from morphlightning.layers.initialization import Rows

SCALE = 0.1


def problem(seed: int = 0, noise: str = "gumbel", units: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (400, 30), noisy outputs, and the weights behind them."""
    rng = np.random.default_rng(seed)
    x, w = rng.random((400, 30)), 0.3 * rng.normal(size=(units, 30))
    clean = (x[:, None] + w).max(-1)
    added = {
        "none": 0.0,
        "gaussian": 0.1 * rng.normal(size=clean.shape),
        "gumbel": 0.1 * (rng.gumbel(size=clean.shape) - np.euler_gamma),
        "uniform": rng.uniform(-0.2, 0.2, clean.shape),
    }[noise]
    return torch.tensor(x), torch.tensor(clean + added), torch.tensor(w)


def loss(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Minus the mean log-likelihood of one unit, written down independently."""
    z = y / SCALE - special.logsumexp((x + w) / SCALE, axis=1)
    return float(np.mean(z + np.exp(-z)) + math.log(SCALE))


def slope(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = y / SCALE - special.logsumexp((x + w) / SCALE, axis=1)
    return ((np.exp(-z) - 1)[:, None] * special.softmax((x + w) / SCALE, axis=1)).mean(0) / SCALE


def passes(initializer: GumbelEM, x: Tensor, y: Tensor, start: Tensor) -> tuple[list[Tensor], Tensor]:
    """The weights at the begin of each iteration and behind the last, and those that it ends with."""
    spec, state, seen = SiteSpec("dilation", tuple(start.shape)), {}, []
    for number in range(initializer.passes):
        state = initializer.begin(spec, start, state)
        if number > 1:
            seen.append(state["w"].clone())
        initializer.update(state, Rows(x[:, None], y[:, None], torch.zeros(len(x), dtype=torch.int64)))
    return seen, initializer.finish(spec, start, state, torch.Generator())


def test_inf_5_the_likelihood_never_falls_and_ends_at_the_optimum_of_a_convex_function() -> None:
    """INF-5: against L-BFGS on the likelihood, from a start of its own."""
    x, y, _ = problem()
    seen, _ = passes(GumbelEM(SCALE, iterations=400), x, y, torch.zeros(1, 30, dtype=torch.float64))
    losses = [loss(w.numpy(), x.numpy(), y[:, 0].numpy()) for w in seen]
    assert len(losses) == 401
    assert (np.diff(losses) <= 1e-12).all()
    assert losses[0] - losses[-1] > 0.1
    best = optimize.minimize(loss, np.zeros(30), (x.numpy(), y[:, 0].numpy()), jac=slope)
    assert losses[-1] == pytest.approx(best.fun, abs=1e-3)

    def in_theta(theta: np.ndarray) -> float:
        return loss(SCALE * np.log(theta), x.numpy(), y[:, 0].numpy())

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = np.exp(rng.normal(size=(2, 30)) * 3)
        assert in_theta((a + b) / 2) <= (in_theta(a) + in_theta(b)) / 2 + 1e-12


@pytest.mark.parametrize("noise", ["gaussian", "gumbel", "uniform"])
def test_it_beats_residuation_on_noisy_data(noise: str) -> None:
    """Distance to the clean outputs on fresh inputs, mean of three problems; residuation also with its best shift."""
    errors = []
    for seed in range(3):
        x, y, w = problem(seed, noise)
        start = torch.zeros(1, 30, dtype=torch.float64)
        em = passes(GumbelEM(SCALE), x, y, start)[1]
        residual = Residual()
        state = residual.begin(SiteSpec("dilation", (1, 30)), start, {})
        residual.update(state, Rows(x[:, None], y[:, None], torch.zeros(400, dtype=torch.int64)))
        least = state["low"]
        shifted = least + (y - (x[:, None] + least).amax(-1)).mean(0)
        fresh = torch.tensor(np.random.default_rng(100 + seed).random((2000, 30)))
        clean = (fresh + w).amax(1)
        errors.append([((fresh + v).amax(1) - clean).square().mean().sqrt().item() for v in (em, least, shifted)])
    em, least, shifted = np.mean(errors, axis=0)
    assert em < 0.25 * least
    assert em < (1 if noise == "uniform" else 0.8) * shifted


def test_layers_learn_by_it_with_groups_erosions_and_missing_weights() -> None:
    x, y, w = problem(units=3)
    mask = torch.ones(3, 30, dtype=torch.bool)
    mask[1, :5] = False
    dilation = Dilation(30, 3, mask=mask, initializer=GumbelEM(SCALE, iterations=40)).double()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    initialize(dilation, batches)
    assert torch.equal(dilation.mask, mask)
    assert (dilation(x) - y).mean(0).abs().max() < 1e-9
    near = (dilation(x) - (x[:, None] + w).amax(-1)).square().mean(0).sqrt()
    assert (near[[0, 2]] < 0.06).all()
    erosion = Erosion(30, 3, mask=mask, initializer=GumbelEM(SCALE, iterations=40)).double()
    initialize(erosion, [(-a, -b) for a, b in batches])
    torch.testing.assert_close(erosion.effective_weight, dilation.effective_weight)


def test_small_scales_give_residuation_and_large_values_do_no_harm() -> None:
    x, y, _ = problem(noise="none")
    start = torch.zeros(1, 30, dtype=torch.float64)
    least = (y[:, :, None] - x[:, None]).amin(0)
    first = passes(GumbelEM(1e-4, iterations=1), x, y, start)[0][0]
    torch.testing.assert_close(first, least, rtol=0, atol=1e-4 * math.log(400))
    for factor in (1e3, 1e6):
        seen, w = passes(GumbelEM(SCALE, iterations=5), factor * x, factor * y, start)
        assert w.isfinite().all()
        assert seen[-1].isfinite().all()
    single = passes(GumbelEM(SCALE, iterations=5), x.float(), y.float(), start.float())[1]
    torch.testing.assert_close(
        single.double(), passes(GumbelEM(SCALE, iterations=5), x, y, start)[1], rtol=0, atol=1e-4
    )


def test_settings() -> None:
    with pytest.raises(ValueError, match="scale must be > 0"):
        GumbelEM(scale=0.0)
    with pytest.raises(ValueError, match="iterations >= 1"):
        GumbelEM(iterations=0)


def test_a_head_learns_classes() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(60, 4), torch.arange(60) % 3
    layer = Dilation(4, 3, initializer=GumbelEM(0.3, iterations=5))
    assert initialize(nn.Sequential(layer), [(x, y)]) == ["0"]
    assert layer.weight.isfinite().all()
