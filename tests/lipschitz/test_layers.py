import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morphlightning import layers, registry
from morphlightning.errors import ConfigError, NotCertifiable, ShapeError
from morphlightning.lipschitz import GroupSort, Residual, SpectralConv2d, SpectralLinear, Sum, certify, lipschitz_spec

LAYERS = {
    "linear": (lambda **options: SpectralLinear(6, 4, **options), (6,)),
    "full": (lambda **options: SpectralConv2d(2, 3, 3, **options), (2, 4, 5)),
    "same": (lambda **options: SpectralConv2d(2, 3, 3, padding="same", **options), (2, 4, 5)),
    "valid": (lambda **options: SpectralConv2d(1, 3, 2, padding="valid", **options), (1, 4, 5)),
    "strided": (lambda **options: SpectralConv2d(2, 4, 3, stride=2, groups=2, **options), (2, 4, 5)),
}


def with_weight(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("constant", [1.0, 2.5])
def test_the_constant_holds_and_is_nearly_attained(build, shape, constant: float, hunt) -> None:
    module = with_weight(build(constant=constant), 3.0)
    spec = lipschitz_spec(module)
    assert spec.constant <= constant
    found = hunt(module, shape, spec, steps=3)
    assert 0.6 * constant <= found <= constant


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(LAYERS)), st.floats(-30, 30), st.sampled_from(["always", "clip"]))
def test_no_weight_breaks_the_constant(seed: int, which: str, exponent: float, normalize: str) -> None:
    build, _ = LAYERS[which]
    module = with_weight(build(normalize=normalize), 10**exponent, seed)
    assert lipschitz_spec(module).constant <= 1
    if normalize == "always" or exponent > 2:
        assert lipschitz_spec(module).constant >= 0.999


def test_a_weight_of_zeros_stays_one() -> None:
    for build, _ in LAYERS.values():
        module = with_weight(build(), 0.0)
        assert lipschitz_spec(module).constant == 0
        module.effective_weight.sum().backward()
        assert module.weight.grad.isfinite().all()


def test_clip_lets_small_norms_be() -> None:
    module = with_weight(SpectralLinear(4, 3, normalize="clip"), 1e-2)
    assert torch.equal(module.effective_weight, module.weight)


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_gradients_go_through_the_norm(build, shape) -> None:
    module = with_weight(build(), 1.0).double()
    x = torch.randn(2, *shape, dtype=torch.float64)

    def call(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(call, module.weight, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, module.weight, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_outputs_have_the_dtype_of_inputs(dtype: torch.dtype) -> None:
    for build, shape in LAYERS.values():
        assert build()(torch.randn(2, *shape, dtype=dtype)).dtype == dtype


def test_full_padding_cuts_nothing_off() -> None:
    module = SpectralConv2d(1, 1, 4)
    x = torch.zeros(1, 1, 5, 5)
    x[..., 0, 0] = x[..., 4, 4] = 1
    y = module(x) - module.bias.view(1, -1, 1, 1)
    assert y.shape == (1, 1, 8, 8)
    assert y.square().sum().item() >= 1.9 * module.effective_weight.square().sum().item()
    assert [SpectralConv2d(1, 1, 3, stride=s, padding=p).output_size(5) for s, p in ((1, "same"), (2, "valid"))] == [
        5,
        2,
    ]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3), (2, 6, 3, 4)])
def test_groups_are_sorted(size: int, shape: tuple[int, ...], hunt) -> None:
    x = torch.randn(shape)
    y = GroupSort(size)(x)
    expected = x.movedim(1, -1).unflatten(-1, (-1, size)).sort(-1).values.flatten(-2).movedim(-1, 1)
    assert torch.equal(y, expected)
    for norm in ("l2", "linf"):
        spec = lipschitz_spec(GroupSort(size), norm)
        assert hunt(GroupSort(size), (6,), spec, steps=3) <= spec.constant * (1 + 1e-9)
    with pytest.raises(ShapeError, match="groups of 4"):
        GroupSort(4)(x)


def test_a_mean_with_the_identity_is_bounded_in_both_norms(hunt) -> None:
    module = Residual(SpectralLinear(5, 5, constant=3.0), keep=0.25).double()
    for norm in ("l2", "linf"):
        spec = lipschitz_spec(module, norm)
        assert hunt(module, (5,), spec, steps=3) <= spec.constant
    assert lipschitz_spec(module).constant == pytest.approx(0.25 + 0.75 * 3, rel=1e-4)
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), 0.25 * x + 0.75 * module.branch(x))
    with pytest.raises(NotCertifiable, match="linf"):
        certify(Residual(layers.Dilation(3, 3)))


def test_a_residual_connection_adds_one(hunt) -> None:
    module = Sum(nn.Identity(), nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5))).double()
    for norm in ("l2", "linf"):
        spec = lipschitz_spec(module, norm)
        assert spec.constant == pytest.approx(1 + lipschitz_spec(module.branches[1], norm).constant)
        assert hunt(module, (5,), spec, steps=3) <= spec.constant
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), x + module.branches[1](x))


def test_a_sum_is_measured_in_the_norm_that_all_branches_share(hunt) -> None:
    module = Sum(layers.Dilation(4, 4), nn.Linear(4, 4), nn.Identity())
    spec = lipschitz_spec(module, "l2")
    assert (spec.norm_in, spec.norm_out) == ("l2", "linf")
    assert hunt(module, (4,), spec, steps=3) <= spec.constant
    with pytest.raises(
        NotCertifiable, match=r"layer '0' \(Sum\): branch 1: layer '1' \(Hardshrink\): nothing is known"
    ):
        certify(nn.Sequential(Sum(nn.Identity(), nn.Sequential(nn.ReLU(), nn.Hardshrink()))))


def test_a_negative_threshold_doubles_the_slope() -> None:
    module = registry.build("activations", "soft_threshold")
    assert certify(module).constant == 1
    module.threshold.data.fill_(-0.1)
    assert certify(module).constant == 2
    module.project_()
    assert certify(module).constant == 1


def test_a_subclass_with_another_forward_does_not_inherit_the_constant() -> None:
    class Doubled(SpectralLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(NotCertifiable, match="forward"):
        certify(Doubled(2, 2))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: SpectralLinear(2, 2, normalize="never"), "'always' or 'clip'"),
        (lambda: SpectralLinear(2, 2, constant=0.0), "positive"),
        (lambda: SpectralLinear(0, 2), "positive"),
        (lambda: SpectralConv2d(3, 4, groups=2), "divide"),
        (lambda: SpectralConv2d(1, 1, 4, padding="same"), "odd kernels"),
        (lambda: GroupSort(0), ">= 1"),
        (Sum, "at least one branch"),
        (lambda: Residual(nn.Identity(), 1.5), r"\[0, 1\]"),
    ],
)
def test_what_cannot_work_is_refused(build, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build()
