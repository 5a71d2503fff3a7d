"""Modules of learnable linear splines."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.interfaces import Constrained, LipschitzDeclared, Proximal, Spline
from morphlightning.lipschitz import certify
from morphlightning.models.parameters import parameter_groups
from morphlightning.splines import LinearSpline, NonuniformSpline, SlopeConstraint, SplineModule, SplineTable

Make = Callable[..., SplineModule]
KINDS: list[Make] = [LinearSpline, NonuniformSpline]
EVERYTHING: dict[str, Any] = {
    "channels": 6,
    "groups": 3,
    "constraint": {"min": -0.5, "max": 2.0},
    "extrapolation": "constant",
    "learn_scale": True,
    "init": torch.sin,
    "knots": 9,
}


def shaken(module: SplineModule, size: float = 0.3) -> SplineModule:
    """The module with all its parameters moved."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=draw).to(parameter)
    return module


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("parameters", [{}, EVERYTHING, EVERYTHING | {"projection": "step"}, {"channels": 6}])
def test_a_module_is_its_table(make: Make, parameters: dict[str, Any]) -> None:
    module = shaken(make(**parameters)).double()
    x = 3 * torch.randn(4, 6, 5, dtype=torch.float64)
    for training in (True, False):
        module.train(training)
        table = module.table()
        torch.testing.assert_close(module(x), table(x))
        torch.testing.assert_close(module.derivative(x), table.slope(x))
        torch.testing.assert_close(module.potential(x), table.potential(x))
        torch.testing.assert_close(module.tv2(), table.tv2())
        torch.testing.assert_close(module.lipschitz(), table.lipschitz())
    assert isinstance(module, Spline)
    assert isinstance(module, LipschitzDeclared)
    assert isinstance(module, Constrained)
    assert module.lipschitz_spec().constant >= float(module.lipschitz().detach().max())
    assert module.tv2().requires_grad


def test_prox_and_inverse_of_a_module() -> None:
    module = shaken(LinearSpline(knots=9, constraint={"min": 0.1, "max": 2.0}, learn_scale=True, init="identity"))
    x = torch.linspace(-5, 5, 50)
    torch.testing.assert_close(module.inverse()(module(x)), x, rtol=1e-4, atol=1e-5)
    y = module.prox(0.5)(x)
    torch.testing.assert_close(y + 0.5 * module(y), x, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotSupportedError, match="strictly monotone"):
        LinearSpline(init="absolute").inverse()


def test_groups_share_and_channels_are_checked() -> None:
    module = shaken(LinearSpline(channels=6, groups=2, knots=5))
    assert module.values.shape == (2, 5)
    x = torch.randn(3, 1, 4).expand(-1, 6, -1)
    y = module(x)
    assert torch.equal(y[:, 0], y[:, 2])
    assert torch.equal(y[:, 3], y[:, 5])
    assert not torch.equal(y[:, 2], y[:, 3])
    for method in (module, module.derivative, module.potential):
        with pytest.raises(ShapeError, match="must have 6 channels"):
            method(torch.randn(3, 4))
    for given in ({"channels": 6, "groups": 4}, {"groups": 2}, {"channels": 6, "groups": 0}):
        with pytest.raises(ConfigError, match="groups must divide channels"):
            LinearSpline(**given)


@pytest.mark.parametrize("make", KINDS)
def test_constant_extrapolation_keeps_every_piece(make: Make) -> None:
    module = make(knots=5, limit=(-1.0, 3.0), init="identity", extrapolation="constant")
    x = torch.tensor([-1e4, -1.5, -1.0, 0.3, 3.0, 3.4, 1e4, float("inf")])
    assert module(x).tolist() == pytest.approx(x.clamp(-1, 3).tolist(), abs=1e-6)
    assert module.table().knots[0].tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ConfigError, match="constant extrapolation has slope 0"):
        make(extrapolation="constant", constraint={"min": 0.1})


def test_scales_leave_slopes_alone() -> None:
    module = LinearSpline(channels=2, knots=21, init="absolute", learn_scale=True, extrapolation="constant").double()
    before = module.tv2(), module.lipschitz()
    with torch.no_grad():
        module.log_scale.copy_(torch.tensor([0.0, 1.0]))  # type: ignore[union-attr]
    torch.testing.assert_close(module.tv2(), before[0])
    torch.testing.assert_close(module.lipschitz(), before[1])
    x = torch.linspace(-4, 4, 9, dtype=torch.float64).expand(2, -1)[None]
    plain = LinearSpline(knots=21, init="absolute", extrapolation="constant").double()
    torch.testing.assert_close(module(x)[:, 1], plain(torch.e * x[:, 1]) / torch.e)


def test_optimizers_tell_scales_from_values() -> None:
    module = nn.Sequential(NonuniformSpline(learn_scale=True, learn_knots=True))
    roles = {group.role: group.names for group in parameter_groups(module)}
    assert {role: sorted(names) for role, names in roles.items()} == {
        "activation": ["0.logits", "0.values"],
        "scale": ["0.log_scale"],
    }


# -------------------------------------------------------------------------------------------------- constraints
BOUNDS: dict[str, SlopeConstraint] = {
    "lipschitz": SlopeConstraint.of("lipschitz"),
    "narrow": SlopeConstraint(0.2, 0.7),
    "weak": SlopeConstraint(-0.5, 3.0, level_ends=True),
    "odd": SlopeConstraint(0.0, 1.0, odd=True),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(("projection", "metric"), [("forward", "clip"), ("forward", "l2"), ("step", "l2")])
def test_slopes_stay_inside_while_training(name: str, strict: bool, projection: Any, metric: Any) -> None:
    bounds = BOUNDS[name].__class__(**vars(BOUNDS[name]) | {"strict": strict})
    x, y = torch.randn(64, 3), torch.randn(64, 3)
    knots = torch.tensor([-2.0, -1.1, -0.4, 0.4, 1.1, 2.0])
    for kind, optimizer in ((0, torch.optim.SGD), (1, torch.optim.Adam)):
        settings = {"channels": 3, "constraint": bounds, "projection": projection, "metric": metric}
        module = (
            LinearSpline(knots=15, **settings) if kind == 0 else NonuniformSpline(knots=knots, **settings)  # type: ignore[arg-type]
        )
        step = optimizer(module.parameters(), lr=3.0)
        for _ in range(50):
            step.zero_grad()
            (module(x) - y).square().mean().backward()
            step.step()
            module.project_()
            values, places, _ = module._applied()
            bounds.check(values, places[0] if isinstance(places, Tensor) else places)
        assert module.values.isfinite().all()


@pytest.mark.parametrize("make", KINDS)
def test_strict_bounds_are_the_certified_constant(make: Make) -> None:
    steep = make(init=lambda t: 5 * t.sin(), constraint={"min": -1, "max": 1, "strict": True}, learn_scale=True)
    assert 0.99 < steep.lipschitz_spec().constant <= 1
    assert certify(nn.Sequential(nn.Flatten(), steep)).constant <= 1


def test_projection_on_use_or_after_steps() -> None:
    steep = torch.linspace(-6, 6, 7)[None]
    forward = LinearSpline(knots=7, constraint="lipschitz")
    step = LinearSpline(knots=7, constraint="lipschitz", projection="step")
    with torch.no_grad():
        forward.values.copy_(steep)
        step.values.copy_(steep)
    assert step.lipschitz() > 1.9
    assert forward.lipschitz() <= 1 + 1e-6
    forward.project_()
    step.project_()
    assert torch.equal(forward.values, steep)
    torch.testing.assert_close(step(x := torch.randn(9)), forward(x))
    forward(x).sum().backward()
    assert forward.values.grad is not None


# ---------------------------------------------------------------------------------- what is kept for evaluation
def fresh(module: SplineModule, x: Tensor) -> Tensor:
    """What a copy that has kept nothing computes."""
    again = copy.deepcopy(module)
    assert again._kept is None
    return again(x)


@pytest.mark.parametrize("make", KINDS)
def test_what_is_kept_is_never_stale(make: Make) -> None:
    module = shaken(make(**EVERYTHING)).eval()
    other = shaken(make(**EVERYTHING), 0.7)
    x = torch.randn(5, 6)

    def optimize() -> None:
        step = torch.optim.Adam(module.parameters(), lr=0.3)
        module(x).square().sum().backward()
        step.step()

    def fused() -> None:
        step = torch.optim.Adam(module.parameters(), lr=0.3, fused=True)
        module(x).square().sum().backward()
        step.step()

    def averaged() -> None:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(other.parameters()).detach(), module.parameters())

    changes: list[Callable[[], Any]] = [
        optimize,
        fused,
        lambda: module.load_state_dict(other.state_dict()),
        lambda: module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True),
        lambda: module.values.data.mul_(1.1),
        lambda: torch.no_grad()(lambda: module.values.mul_(0.9))(),
        lambda: setattr(module, "values", nn.Parameter(-module.values.detach())),
        averaged,
        lambda: module.to(torch.bfloat16).to(torch.float32),
    ]
    for change in changes:
        with torch.no_grad():
            before = module(x)
            assert module(x).data_ptr() != before.data_ptr()
            assert module._kept is not None
        change()
        with torch.no_grad():
            assert torch.equal(module(x), fresh(module, x))
            assert module.training or module._kept is not None
    with torch.inference_mode():
        kept = module(x)
    module.train().eval()
    with torch.inference_mode():
        module(x)
    inputs = x.clone().requires_grad_()
    module.requires_grad_(False)(inputs).sum().backward()  # what inference mode kept can be differentiated through
    assert inputs.grad is not None
    assert torch.equal(kept, module(x))


def test_evaluation_with_gradients_twice() -> None:
    module = LinearSpline(constraint="lipschitz").eval()
    for _ in range(2):
        module(torch.randn(3)).sum().backward()
    assert module.values.grad is not None


# ------------------------------------------------------------------------------------------------ saving, moving
@pytest.mark.parametrize("make", KINDS)
def test_constants_come_back_from_a_checkpoint(make: Make) -> None:
    """Where the knots lie is part of the state; no change of dtype rounds the ends of uniform ones."""
    module = shaken(make(**EVERYTHING | {"limit": (-0.1, 0.7)}))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    again = make(**EVERYTHING)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(4, 6)
    assert torch.equal(again(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    if isinstance(module, LinearSpline):
        assert module.to(torch.bfloat16).ends == (-0.1, 0.7)


def test_learned_knots_come_back(tmp_path: Any) -> None:
    module = shaken(NonuniformSpline(channels=3, knots=7, learn_knots=True, share_knots=False), 1.0)
    again = NonuniformSpline(channels=3, knots=7, learn_knots=True, share_knots=False, limit=1.0)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.table().knots, module.table().knots)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(make: Make, dtype: torch.dtype) -> None:
    exact = make(**EVERYTHING).double()
    module = copy.deepcopy(exact).to(dtype)
    x = torch.randn(7, 6, dtype=dtype)
    rounding = 8 * torch.finfo(dtype).eps
    assert module(x).dtype == dtype
    torch.testing.assert_close(module(x).double(), exact(x.double()), rtol=rounding, atol=rounding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nn.Sequential(nn.Linear(6, 6), make(**EVERYTHING))(torch.randn(7, 6))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "training"), [(LinearSpline, True), pytest.param(NonuniformSpline, False, marks=pytest.mark.slow)]
)
def test_compiles_as_a_whole(make: Make, training: bool) -> None:
    module = shaken(make(**EVERYTHING)).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 6)
    torch.testing.assert_close(compiled(x), module(x))
    compiled(x).sum().backward()


def test_is_mapped_over_parameters_and_samples() -> None:
    module = LinearSpline(channels=3, knots=7, constraint="lipschitz").eval()
    stacked = torch.randn(4, 3, 7)
    x = torch.randn(4, 5, 3)
    call = lambda values, x: torch.func.functional_call(module, {"values": values}, (x,))  # noqa: E731
    mapped = torch.func.vmap(call)(stacked, x)
    torch.testing.assert_close(mapped, torch.stack([call(v, xi) for v, xi in zip(stacked, x, strict=True)]))


# ----------------------------------------------------------------------------------------------- knots, starts
def test_given_knots_of_one_or_of_each() -> None:
    shared = NonuniformSpline(channels=2, knots=[-1.0, 0.0, 0.5, 2.0])
    assert shared.knots.shape == (1, 4)
    own = NonuniformSpline(channels=2, knots=torch.tensor([[-1.0, 0.0, 1.0], [-3.0, 0.0, 2.0]]))
    x = torch.randn(5, 2)
    torch.testing.assert_close(own(x), x.relu())
    torch.testing.assert_close(shared(x), x.relu())
    for knots, message in (
        ([0.0, 0.0, 1.0], "ascend"),
        ([1.0, 0.0], "ascend"),
        ([0.0], "K >= 2"),
        (torch.zeros(3, 4), "2 rows"),
        (1, "knots must be >= 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            NonuniformSpline(channels=2, knots=knots)


@pytest.mark.parametrize("share", [True, False])
def test_learned_knots_stay_apart_and_between_the_ends(share: bool) -> None:
    module = NonuniformSpline(channels=2, knots=[-1.0, -0.5, 0.0, 2.0], learn_knots=True, share_knots=share)
    torch.testing.assert_close(module.table().knots[0], torch.tensor([-1.0, -0.5, 0.0, 2.0]))
    step = torch.optim.SGD(module.parameters(), lr=5.0)
    for _ in range(20):
        step.zero_grad()
        (module(torch.rand(50, 2)) - 1.0).square().mean().backward()
        step.step()
        knots = module.table().knots
        assert (knots.diff(dim=1) >= 0.99e-3).all()
        assert knots[:, 0].tolist() == [-1.0, -1.0]
        assert knots[:, -1].tolist() == [2.0, 2.0]
    assert module.logits.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("share", [True, False])
def test_learned_knots_of_an_odd_spline_stay_symmetric(share: bool) -> None:
    settings: dict[str, Any] = {"channels": 2, "knots": 8, "learn_knots": True, "share_knots": share, "init": torch.sin}
    module = shaken(NonuniformSpline(constraint={"min": -1.0, "odd": True}, **settings), 1.0)
    table = module.table()
    assert torch.equal(table.knots, -table.knots.flip(1))
    assert (table.knots.diff(dim=1) > 0).all()
    x = torch.randn(5, 2)
    torch.testing.assert_close(module(-x), -module(x))
    module(x).square().sum().backward()
    assert module.logits is not None
    assert module.logits.grad is not None
    assert module.logits.grad.abs().max() > 0


def test_gradients_of_everything() -> None:
    module = shaken(NonuniformSpline(**EVERYTHING, learn_knots=True, share_knots=False)).double()
    names, values = zip(*module.named_parameters(), strict=True)
    x = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    call = lambda x, *v: torch.func.functional_call(module, dict(zip(names, v, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *(v.detach().clone().requires_grad_() for v in values)))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_knots_adapt_to_data_and_the_function_stays(share: bool, learned: bool) -> None:
    samples = torch.randn(4000, 2) ** 3
    module = NonuniformSpline(channels=2, knots=21, limit=3.0, share_knots=share, learn_knots=learned)
    module.adapt_(samples)
    x = samples[:100]
    torch.testing.assert_close(module(x), x.relu(), rtol=0, atol=2e-2 if learned else 1e-5)
    knots = module.table().knots
    assert (knots.diff(dim=1) > 0).all()
    narrow, wide = knots.diff(dim=1)[0, [10, 0]]
    assert wide > 20 * narrow
    for bad, message in ((torch.zeros(5, 2), "not all equal"), (torch.full((5, 2), torch.nan), "finite")):
        with pytest.raises(ConfigError, match=message):
            module.adapt_(bad)
    with pytest.raises(ConfigError, match="uniform"):
        module.adapt_(samples, uniform=0.0)


def test_starts_from_functions_tables_and_data_ranges() -> None:
    x = torch.linspace(-2, 2, 41)
    assert (LinearSpline(init=torch.tanh)(x) - x.tanh()).abs().max() < 3e-3
    table = SplineTable(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(LinearSpline(init=table, knots=31)(x), table(x))
    assert LinearSpline(limit=torch.tensor([0.5, 3.0, -1.0])).ends == (-1.0, 3.0)
    for limit in (0.0, float("nan"), (1.0, 1.0), float("inf")):
        with pytest.raises(ConfigError, match="limit must be > 0"):
            LinearSpline(limit=limit)
    with pytest.raises(ConfigError, match="init must be one of"):
        LinearSpline(init="tanh")  # type: ignore[arg-type]
    for name, value in (("projection", "later"), ("metric", "l1"), ("extrapolation", "zero")):
        with pytest.raises(ConfigError, match=f"{name} must be one of"):
            LinearSpline(**{name: value})
    assert "SlopeConstraint" in repr(LinearSpline(constraint="lipschitz"))


# ------------------------------------------------------------------------------------------- pruning and fitting
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("channels", [None, 6])
def test_pruned_modules_compute_nearly_the_same(make: Make, channels: int | None) -> None:
    settings = EVERYTHING | {"channels": channels, "groups": None, "knots": 41, "init": torch.tanh}
    module = shaken(make(**settings), 0.01).eval()
    pruned = module.prune(0.05)
    assert isinstance(pruned, NonuniformSpline)
    assert not pruned.training
    assert pruned.values.shape[1] < 30
    x = 3 * torch.randn(50, 6)
    assert (pruned(x) - module(x)).abs().max() < 0.05 + 1e-5
    assert (pruned.tv2() <= module.tv2() + 1e-4).all()
    assert pruned.constraint == module.constraint
    odd = LinearSpline(constraint={"min": 0, "max": 1, "odd": True}, init=torch.tanh).prune(0.01)
    assert odd.constraint == SlopeConstraint(0, 1)


@pytest.mark.parametrize("make", KINDS)
def test_fits_functions_and_samples(make: Make) -> None:
    module = make(channels=2, knots=25, learn_scale=True).double()
    with torch.no_grad():
        module.log_scale.copy_(torch.tensor([0.3, -0.3]))  # type: ignore[union-attr]
    x = torch.rand(400, 2, dtype=torch.float64) * 4 - 2
    module.fit_(torch.sin)
    assert (module(x) - x.sin()).abs().max() < 2e-2
    y = torch.stack([x[:, 0].exp(), x[:, 1].abs()], 1)
    module.fit_((x, y))
    assert (module(x) - y).square().mean(0).sqrt().max() < 2e-2
    few = make(knots=25).fit_((torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-2.0, 0.0, 2.0])))
    torch.testing.assert_close(few(x.float()), 2 * x.float(), rtol=0, atol=1e-3)
    bounded = make(constraint="lipschitz").fit_((x, 3 * x))
    assert bounded.lipschitz() <= 1 + 1e-5


@pytest.mark.parametrize(
    "parameters",
    [
        {"channels": 4},
        {"channels": 4, "groups": 2, "limit": (-1.0, 2.0), "extrapolation": "constant"},
        {"channels": 4, "learn_scale": True},
        {},
    ],
)
@pytest.mark.parametrize("make", KINDS)
def test_proximal_activation(make: Make, parameters: dict[str, Any]) -> None:
    module = shaken(make(init="soft_threshold", constraint="firmly_nonexpansive", **parameters))
    assert isinstance(module, Proximal)
    x = 3 * torch.randn(5, 4)
    sigma = module.proximal()
    torch.testing.assert_close(sigma(x), module(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sigma.h_star(x), module.potential(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(NotSupportedError, match=r"slopes in \[0, 1\]"):
        make(init="absolute", **parameters).proximal()
