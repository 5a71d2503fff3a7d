"""Accelerated proximal gradient against closed forms, scipy and its own bounds."""

import math

import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from morphlightning.errors import ConfigError, DtypeError, NonFiniteError, ShapeError
from morphlightning.inverse import minimize


def quadratics(count=3, size=12, condition=1e3, seed=0, dtype=torch.float64):
    """1/2 x^T A x - b^T x for each sample, each with its own A; also the solutions."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64)
    a = q @ torch.diag_embed(spectrum * torch.arange(1, count + 1).view(-1, 1)) @ q.mT
    b = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return a.to(dtype), b.to(dtype), torch.linalg.solve(a, b).to(dtype)


def pull(x, a, b):
    return (a @ x.unsqueeze(-1)).squeeze(-1) - b


def soft(z, step, *data):
    return torch.nn.functional.softshrink(z / (0.1 * step), 1.0) * (0.1 * step)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_finds_the_minimizer_of_a_quadratic(strong, restart):
    a, b, expected = quadratics(condition=100)
    top = torch.tensor([1.0, 2.0, 3.0], dtype=a.dtype)
    found = minimize(
        pull, torch.zeros_like(b), data=(a, b), lipschitz=top, strong_convexity=top * 1e-2 if strong else 0.0,
        restart=restart, tolerance=1e-10, max_iterations=20_000,
    )  # fmt: skip
    assert found.converged.all()
    torch.testing.assert_close(found.x, expected, rtol=1e-6, atol=1e-6)


def test_momentum_and_restart_save_iterations():
    a, b, _ = quadratics(1, condition=200)

    def iterations(**options):
        found = minimize(pull, torch.zeros_like(b), data=(a, b), lipschitz=1.0, tolerance=1e-6,
                         max_iterations=10_000, **options)  # fmt: skip
        return int(found.iterations)

    plain = iterations(strong_convexity=1 - 1e-9)  # no momentum is left
    assert iterations(restart=True) * 5 < plain
    assert iterations(restart=True) * 1.5 < iterations(restart=False)


def test_lasso_agrees_with_scipy():
    a, b, _ = quadratics(1, condition=50)
    found = minimize(
        pull, torch.zeros_like(b), data=(a, b), lipschitz=1.0, prox=soft, tolerance=1e-13, max_iterations=5000
    )
    size = b.shape[1]

    def split(p):  # x = p[:size] - p[size:], both >= 0
        x = torch.from_numpy(p[:size] - p[size:])
        slope = a[0] @ x - b[0]
        value = float(x @ (a[0] @ x) / 2 - b[0] @ x + 0.1 * p.sum())
        return value, torch.cat([slope + 0.1, 0.1 - slope]).numpy()

    other = scipy_minimize(split, [0.0] * 2 * size, jac=True, bounds=[(0, None)] * 2 * size, method="L-BFGS-B",
                           options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000})  # fmt: skip
    torch.testing.assert_close(found.x[0], torch.from_numpy(other.x[:size] - other.x[size:]), rtol=0, atol=1e-6)


def test_every_sample_is_on_its_own():
    a, b, _ = quadratics(5)
    top = torch.arange(1.0, 6.0, dtype=a.dtype)
    options = {"tolerance": 1e-6, "max_iterations": 3000}
    together = minimize(pull, torch.zeros_like(b), data=(a, b), lipschitz=top, prox=soft, **options)
    assert len(together.iterations.unique()) > 1
    for i in range(5):
        one = slice(i, i + 1)
        alone = minimize(
            pull, torch.zeros_like(b[one]), data=(a[one], b[one]), lipschitz=top[one], prox=soft, **options
        )
        assert abs(int(alone.iterations) - int(together.iterations[i])) <= 1
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-6, atol=1e-8)


def test_samples_that_have_stopped_are_left_out():
    seen = []

    def gradient(x, target):
        seen.append(len(x))
        return x - target

    target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = minimize(gradient, torch.tensor([[1.0, 0.0], [5.0, -3.0]]), data=(target,), lipschitz=2.0, tolerance=1e-3)
    assert (seen[0], seen[-1]) == (2, 1)
    assert found.iterations[0] == 1
    torch.testing.assert_close(found.x, target, atol=2e-2, rtol=0)
    assert found.history.shape == (int(found.iterations.max()), 2)
    assert (found.history[:, 0] == found.residual[0]).all()


def test_the_safeguard_makes_every_step_descend():
    """Log(1 + x^2) is nonconvex with f'' >= -1/4 and |f''| <= 2."""

    def value(x):
        return torch.log1p(x.square()).sum((1, 2, 3)) * 3 + (x - shift).square().sum((1, 2, 3)) / 2

    def gradient(x, shift):
        return 6 * x / (1 + x.square()) + x - shift

    shift = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    values = [value(shift)]
    found = minimize(
        gradient, shift, data=(shift,), lipschitz=7.0, weak_convexity=0.75, prox=lambda z, step, _: z.clamp_(-2, 2),
        tolerance=1e-10, max_iterations=5000, callback=lambda k, x, r: values.append(value(x)),
    )  # fmt: skip
    assert found.converged.all()
    assert (torch.stack(values[1:]).diff(dim=0) <= 1e-12).all()
    stay = (found.x - gradient(found.x, shift) / 7).clamp(-2, 2) - found.x
    assert stay.abs().max() < 1e-8


def test_the_safeguard_refuses_steps_that_momentum_alone_would_take():
    refused = []
    a, b, _ = quadratics(1, condition=1e4)
    minimize(
        pull, torch.zeros_like(b), data=(a, b), lipschitz=1.0, weak_convexity=0.0, max_iterations=300, tolerance=0.0,
        callback=lambda k, x, r: refused.append(r.isinf().item()),
    )  # fmt: skip
    assert any(refused)
    assert not refused[0]


def test_short_steps_after_a_refusal_do_not_stop_a_sample():
    a, b, expected = quadratics(1, condition=1e3)
    residuals = []
    found = minimize(
        pull, torch.zeros_like(b), data=(a, b), lipschitz=1.0, weak_convexity=0.0, tolerance=3e-3, max_iterations=2000,
        callback=lambda k, x, r: residuals.append(r.item()),
    )  # fmt: skip
    short = [k for k, r in enumerate(residuals) if r <= 3e-3]
    assert len(short) > 1  # some were passed over
    assert found.converged.all()
    assert (found.x - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_memory_format_and_start_are_kept(dtype):
    start = torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    found = minimize(lambda x: x, start, lipschitz=1.0, prox=lambda z, step: z.clamp_min_(0.5))
    assert (found.x.dtype, found.x.requires_grad) == (dtype, False)
    assert (found.x == 0.5).all()
    assert (start == 1).all()


def test_an_empty_batch_is_solved():
    found = minimize(lambda x: x, torch.zeros(0, 3), lipschitz=1.0)
    assert (found.x.shape, found.history.shape) == ((0, 3), (0, 0))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"lipschitz": 0.0}, ConfigError, "lipschitz"),
        ({"lipschitz": torch.tensor([1.0, 1.0, 1.0])}, ShapeError, "lipschitz"),
        ({"strong_convexity": 2.0}, ConfigError, "strong_convexity"),
        ({"weak_convexity": -1.0}, ConfigError, "weak_convexity"),
        ({"weak_convexity": 0.5, "strong_convexity": 0.5}, ConfigError, "strong"),
        ({"tolerance": -1.0}, ConfigError, "tolerance"),
        ({"max_iterations": 0}, ConfigError, "max_iterations"),
        ({"x": torch.zeros(2, 3, dtype=torch.long)}, DtypeError, "int64"),
        ({"data": (torch.zeros(3),)}, ShapeError, "rows"),
        ({"gradient": lambda x: x[:1]}, ShapeError, "data="),
        ({"x": torch.tensor([[1.0], [math.nan]])}, NonFiniteError, r"\[1\]"),
        ({"gradient": lambda x: -3 * x, "max_iterations": 5000}, NonFiniteError, "Lipschitz"),
    ],
)
def test_what_cannot_work_is_refused(options, error, says):
    arguments = {"gradient": lambda x: x, "x": torch.ones(2, 3), "lipschitz": 1.0} | options
    with pytest.raises(error, match=says):
        minimize(**arguments)
