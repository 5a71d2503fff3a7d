"""Checkpoints of the published layout, against the authors' formulas written out again."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import CheckpointError
from morphlightning.models import from_crr_checkpoint, from_wcrr_checkpoint, published

STEM = "conv_layer.conv_layers"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "NORM_SIZE", 24)


def wcrr_state() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    odd = torch.linspace(-0.1, 0.1, 101)[None]
    return {
        "mu_": torch.tensor(2.5),
        f"{STEM}.0.parametrizations.weight.original": torch.randn(4, 1, 5, 5, generator=draw),
        f"{STEM}.1.weight": torch.randn(8, 4, 5, 5, generator=draw) / 10,
        f"{STEM}.2.weight": torch.randn(60, 8, 5, 5, generator=draw) / 10,
        "activation_cvx.coefficients": 1.3 * odd.clamp(-0.01, 0.01) + 0.001 * torch.randn(1, 101, generator=draw),
        "activation_ccv.coefficients": odd + 0.002 * torch.randn(1, 101, generator=draw),
        "spline_scaling.coefficients": 5 + torch.randn(60, 11, generator=draw) / 5,
    }


def crr_state() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.linspace(-0.1, 0.1, 21).repeat(32, 1) + 0.02 * torch.randn(32, 21, generator=draw)
    return {
        "lmbd": torch.tensor(4.0),
        "mu": torch.tensor(1.5),
        "L": torch.tensor(1.0),
        f"{STEM}.0.parametrizations.weight.original": torch.randn(8, 1, 7, 7, generator=draw) / 10,
        f"{STEM}.1.parametrizations.weight.original": torch.randn(32, 8, 7, 7, generator=draw) / 30,
        "activation.coefficients_vect": rows.flatten(),
    }


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "checkpoint_6000.pth"
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


def interpolate(x: Tensor, values: Tensor, low: float, high: float) -> Tensor:
    """Rows (A, K) of equally spaced values at x (N, A or any, H, W), linear outside."""
    count = values.shape[1]
    u = (x - low) * (count - 1) / (high - low)
    k = u.clamp(0, count - 2).floor()
    rows = torch.arange(x.shape[1]).view(-1, 1, 1) if len(values) > 1 else torch.zeros(1, 1, 1, dtype=torch.long)
    left, right = values[rows, k.long()], values[rows, k.long() + 1]
    return left + (u - k) * (right - left)


def analysis(x: Tensor, kernels: list[Tensor]) -> Tensor:
    for kernel in kernels:
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    return x


def synthesis(z: Tensor, kernels: list[Tensor]) -> Tensor:
    for kernel in reversed(kernels):
        z = F.conv_transpose2d(z, kernel, padding=kernel.shape[-1] // 2)
    return z


def centred(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean((1, 2, 3), keepdim=True)


def clipped(values: Tensor, high: float) -> Tensor:
    steps = (values.diff(dim=1) / (0.2 / (values.shape[1] - 1))).clamp(0, high)
    steps[:, 0] = steps[:, -1] = 0
    return F.pad(steps.cumsum(1), (1, 0)) * (0.2 / (values.shape[1] - 1))


@pytest.mark.parametrize("rho", [1.0, 0.0])
def test_the_weakly_convex_gradient_is_that_of_the_authors(tmp_path: Path, rho: float) -> None:
    state = wcrr_state()
    model = from_wcrr_checkpoint(saved(tmp_path, state), weak_convexity=rho)
    kernels = [
        centred(state[f"{STEM}.0.parametrizations.weight.original"]),
        state[f"{STEM}.1.weight"],
        state[f"{STEM}.2.weight"],
    ]
    x, sigma = torch.rand(1, 1, 20, 17, generator=torch.Generator().manual_seed(1)), torch.tensor([25.0])
    u = torch.randn(1, 1, 24, 24)
    for _ in range(200):
        u = synthesis(analysis(u / u.norm(), kernels), kernels)
    root = model.regularizer.filters.norm()
    assert float(root) == pytest.approx(float(u.norm().sqrt()), rel=2e-3)
    alpha = interpolate(sigma.expand(1, 60, 1, 1), state["spline_scaling.coefficients"], 0, 30).exp() / (25 + 1e-5)
    features = alpha * analysis(x, kernels) / root
    convex, concave = (clipped(state[f"activation_{part}.coefficients"], 1.0) for part in ("cvx", "ccv"))
    convex, concave = (convex - convex.flip(1)) / 2, (concave - concave.flip(1)) / 2
    mu = state["mu_"].exp()
    profile = mu * interpolate(features, convex, -0.1, 0.1) - rho * interpolate(features, concave, -0.1, 0.1)
    expected = synthesis(profile / alpha, kernels) / root
    assert torch.allclose(model.grad(x, 25 / 255), expected, atol=2e-5 * float(expected.abs().max()))
    assert model.lipschitz() <= float(mu) * (1 + 1e-5)
    assert model.weak_convexity() == pytest.approx(rho, abs=1e-4)
    assert not model.regularizer.certified


def test_the_convex_denoiser_minimizes_what_the_authors_minimize(tmp_path: Path) -> None:
    state = crr_state()
    path = saved(tmp_path, state)
    kernels = [centred(state[f"{STEM}.{i}.parametrizations.weight.original"]) for i in range(2)]
    values = clipped(state["activation.coefficients_vect"].view(32, 21), math.inf)
    values = values - values[:, 10:11]
    y = torch.rand(1, 1, 18, 15, generator=torch.Generator().manual_seed(1))
    for lambda_, mu, given in ((4.0, 1.5, {}), (2.0, 3.0, {"strength": 2.0, "scale": 3.0})):
        model = from_crr_checkpoint(path, **given)
        expected = lambda_ * synthesis(interpolate(mu * analysis(y, kernels), values, -0.1, 0.1), kernels)
        assert torch.allclose(model.grad(y), expected, atol=2e-5 * float(expected.abs().max()))
        solution = model.denoise(y, tolerance=1e-7, max_iterations=5000)
        z = solution.x
        slope = z - y + lambda_ * synthesis(interpolate(mu * analysis(z, kernels), values, -0.1, 0.1), kernels)
        assert slope.abs().max() < 2e-3 * expected.abs().max()
        assert model.weak_convexity() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu_": None}, "no 'mu_'; it has activation"),
        ({f"{STEM}.1.weight": None}, "no kernel of layer 1"),
        ({"activation_cvx.coefficients": torch.zeros(2, 101)}, r"has shape \(2, 101\), expected \(1, None\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = {name: value for name, value in (wcrr_state() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        from_wcrr_checkpoint(saved(tmp_path, state))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        from_crr_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        from_crr_checkpoint(tmp_path / "text.pth")


@pytest.mark.skipif("MORPHLIGHTNING_WCRR" not in os.environ, reason="MORPHLIGHTNING_WCRR names no published checkpoint")
def test_a_published_checkpoint_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "NORM_SIZE", 256)
    model = from_wcrr_checkpoint(os.environ["MORPHLIGHTNING_WCRR"])
    assert float(model.regularizer.filters.norm()) ** 2 == pytest.approx(396.06, rel=2e-3)
    assert model.lipschitz() == pytest.approx(48.03, rel=1e-2)
    assert model.regularizer.activation.prune(1e-4).values.shape[1] == 6
