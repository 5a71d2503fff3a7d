"""What is trained: a 1-Lipschitz denoiser for all problems, and unrolled proximal gradient steps for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from images import Images
from problems import Problem
from torch import Tensor, nn

from morphlightning.inverse import Averaged, GradientStep, UnrolledProximalGradient
from morphlightning.ridge import FilterBank, RidgeRegularizer
from morphlightning.splines import LinearSpline

NOISE = 10 / 255
"""What the denoiser is trained for; how strongly it acts is tuned for each problem."""
Batch = tuple[tuple[Tensor, ...], Tensor]


def denoiser(images: Images, layers: int, features: int, steps: int) -> Averaged:
    """Firmly non-expansive: the mean of the identity and a 1-Lipschitz network, trained as a whole."""
    torch.manual_seed(0)
    network = Averaged(nn.Sequential(*(ridge_step(features) for _ in range(layers))))
    generator = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        clean = images.patches(16, min(40, images.side), generator)
        return (clean + NOISE * torch.randn(clean.shape, generator=generator),), clean

    train(network, batch, steps, 1e-2)
    return network


def unrolled(problem: Problem, images: Images, layers: int, features: int, steps: int) -> UnrolledProximalGradient:
    """Proximal gradient steps whose proximal maps are gradient steps of regularizers, each of its own."""
    torch.manual_seed(0)
    network = UnrolledProximalGradient(problem.operator, [ridge_step(features) for _ in range(layers)], step=1.5)
    generator = torch.Generator().manual_seed(0)

    def batch() -> Batch:
        clean = images.patches(1, images.side, generator)
        data = problem.measure(clean, generator)
        return (data, problem.start(data)), clean

    train(network, batch, steps, 1e-2)
    return network


def ridge_step(features: int) -> GradientStep:
    """1-Lipschitz: a gradient step of a convex ridge regularizer, slopes of the splines in [0, 1.99]."""
    slopes = {"min": 0.0, "max": 1.99, "odd": True, "level_ends": True}
    splines = LinearSpline(features, knots=41, limit=0.2, init=lambda t: t.clamp(-0.02, 0.02), constraint=slopes)
    return GradientStep(RidgeRegularizer(FilterBank((1, features), 5, "all"), splines))


def train(network: nn.Module, batch: Callable[[], Batch], steps: int, rate: float) -> None:
    """Adam on the squared error, its rate falling to 0; the values of splines learn ten times as slowly."""
    values = [p for name, p in network.named_parameters() if name.endswith("values")]
    others = [p for name, p in network.named_parameters() if not name.endswith("values")]
    optimizer = torch.optim.Adam([{"params": others}, {"params": values, "lr": rate / 10}], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        given, clean = batch()
        loss = (network(*given) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
