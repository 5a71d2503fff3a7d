from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphlightning.inverse.conjugate import conjugate_gradients
from morphlightning.ridge import RidgeRegularizer, equilibrium, gradient_steps, solve


@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_conjugate_gradients_solve_semidefinite_systems(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(3, 6, rank, dtype=torch.float64, generator=generator)
    matrices = factors @ factors.mT
    b = (matrices @ torch.randn(3, 6, 1, dtype=torch.float64, generator=generator)).squeeze(2)
    u = conjugate_gradients(lambda v: (matrices @ v[..., None]).squeeze(2), b, 1e-8, 200)
    residual = ((matrices @ u[..., None]).squeeze(2) - b).norm(dim=1)
    assert (residual <= 1e-6 * b.norm(dim=1)).all()


def test_a_right_hand_side_of_zeros_gives_zeros() -> None:
    assert torch.equal(conjugate_gradients(lambda v: 2 * v, torch.zeros(2, 3)), torch.zeros(2, 3))


def test_the_solution_is_stationary(regularizer: RidgeRegularizer, images: Tensor, sigma: Tensor) -> None:
    solution = solve(regularizer(sigma), images, tolerance=1e-12, max_iterations=5000)
    assert solution.converged.all()
    assert (solution.x - images + regularizer.grad(solution.x, sigma)).abs().max() < 1e-9


def test_one_level_for_all_and_the_same_level_each_agree(regularizer: RidgeRegularizer, images: Tensor) -> None:
    one = solve(regularizer(0.05), images, tolerance=1e-9)
    each = solve(regularizer(torch.full((3,), 0.05)), images, tolerance=1e-9)
    assert torch.allclose(one.x, each.x, atol=1e-7)


def test_gradient_steps_decrease_the_objective(regularizer: RidgeRegularizer, images: Tensor, sigma: Tensor) -> None:
    def objective(x: Tensor) -> Tensor:
        return ((x - images) ** 2).flatten(1).sum(1) / 2 + regularizer.energy(x, sigma)

    values = torch.stack([objective(gradient_steps(regularizer(sigma), images, n)) for n in range(6)])
    assert (values.diff(dim=0) < 0).all()


def test_implicit_gradients_are_those_of_unrolling(regularizer: RidgeRegularizer, images: Tensor) -> None:
    sigma, weight = torch.tensor([5.0, 15.0, 25.0]) / 255, torch.randn_like(images)
    parameters = list(regularizer.parameters())
    x = equilibrium(regularizer(sigma), images, tolerance=1e-11, max_iterations=5000, adjoint_tolerance=1e-9)
    implicit = torch.autograd.grad((x * weight).sum(), parameters)
    ridge = regularizer(sigma)
    z = x.detach()
    for _ in range(150):
        z = z - ((z - images) + ridge.grad(z)) / (1 + ridge.lipschitz().detach())
    unrolled = torch.autograd.grad((z * weight).sum(), parameters)
    for mine, theirs in zip(implicit, unrolled, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_gradients_reach_the_noisy_image(regularizer: RidgeRegularizer, images: Tensor, sigma: Tensor) -> None:
    y = images.clone().requires_grad_()
    x = equilibrium(regularizer(sigma), y, tolerance=1e-11, max_iterations=5000, adjoint_tolerance=1e-9)
    direction = torch.randn_like(images)
    (pulled,) = torch.autograd.grad((x * direction).sum(), y)
    step = 1e-6
    ahead, behind = (
        solve(regularizer(sigma), images + s * direction, tolerance=1e-13, max_iterations=9000).x for s in (step, -step)
    )
    assert (pulled * direction).sum().item() == pytest.approx(
        ((ahead - behind) / (2 * step) * direction).sum().item(), rel=1e-4
    )
