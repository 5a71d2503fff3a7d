"""Displacement fields have the gradient that they say, and bad ones are refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphlightning.errors import ConfigError, DtypeError, ShapeError
from morphlightning.guarantees.stability import Deformation, DisplacementField, affine, fields, gradient_sup

KINDS = ("max_entropy", "sine", "affine", "elastic")
SIZES = [(28, 28), (9, 17), (1, 12), (12, 1), (2, 4)]
DOUBLE = torch.float64


def test_a_stretching_and_a_rotation_have_known_gradients() -> None:
    """GEO-2: sup|grad tau| of tau = (k x, 0) is k."""
    stretch = affine(torch.tensor([[0.1, 0.0], [0.0, 0.0]], dtype=DOUBLE), (28, 28))
    assert stretch.gradient.item() == pytest.approx(0.1, abs=1e-12)
    turn = affine(torch.tensor([[0.0, -0.2], [0.2, 0.0]], dtype=DOUBLE), (9, 17), shift=(3.0, -1.5))
    assert turn.gradient.item() == pytest.approx(0.2, abs=1e-12)
    assert gradient_sup(turn.tau, "linf").item() == pytest.approx(0.2, abs=1e-12)
    assert turn.tau[0, :, 4, 8].tolist() == [3.0, -1.5]  # its centre
    matrix = torch.randn(5, 2, 2, dtype=DOUBLE) / 9
    torch.testing.assert_close(affine(matrix, (5, 8)).gradient, torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_gradient_is_the_lipschitz_constant_of_the_bilinear_field(size: tuple[int, int], norm: str) -> None:
    """An upper bound of every difference quotient, and reached by some of them."""
    torch.manual_seed(0)
    tau = torch.randn(1, 2, *size, dtype=DOUBLE)
    gradient = gradient_sup(tau, norm).item()
    height, width = size
    points = torch.rand(40_000, 2, dtype=DOUBLE) * torch.tensor([width - 1.0, height - 1.0])
    step = 1e-4 * torch.randn(len(points), 2, dtype=DOUBLE)
    other = (points + step).clamp_min(0).minimum(torch.tensor([width - 1.0, height - 1.0]))
    distance = _norm(other - points, norm)
    moved = _norm(_bilinear(tau, other) - _bilinear(tau, points), norm)
    quotients = (moved / distance)[distance > 1e-6]
    assert quotients.max() <= gradient * (1 + 1e-6)
    assert quotients.max() >= 0.6 * gradient


def _norm(vectors: torch.Tensor, norm: str) -> torch.Tensor:
    return vectors.norm(dim=1) if norm == "l2" else vectors.abs().amax(1)


def _bilinear(tau: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """An independent reading of a field between pixels, (points, 2), by scipy."""
    from scipy.interpolate import RegularGridInterpolator

    doubled = [tau.repeat_interleave(2, dim) if tau.shape[dim] == 1 else tau for dim in (2, 3)]
    tau = doubled[0] if tau.shape[2] == 1 else doubled[1]
    axes = [torch.arange(n, dtype=DOUBLE).numpy() for n in tau.shape[2:]]
    read = RegularGridInterpolator(axes, tau[0].permute(1, 2, 0).numpy(), method="linear")
    return torch.from_numpy(read(points.flip(1).numpy()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_fields_have_the_gradient_that_is_asked_for(kind: str, size: tuple[int, int]) -> None:
    field = DisplacementField(kind, gradient=0.3).draw(size, 4, seed=1, dtype=DOUBLE)
    torch.testing.assert_close(field.gradient, torch.full((4,), 0.3, dtype=DOUBLE))
    assert field.tau.shape == (4, 2, *size)
    assert len({round(float(one), 12) for one in field.tau[:, 0].flatten(1).norm(dim=1)}) == 4, "fields differ"


@pytest.mark.parametrize("kind", KINDS)
def test_fields_have_the_amplitude_that_is_asked_for(kind: str) -> None:
    field = DisplacementField(kind, amplitude=0.7, sigma=6).draw((20, 31), 3)
    torch.testing.assert_close(field.amplitude, torch.full((3,), 0.7, dtype=DOUBLE))


def test_the_gradient_of_a_wave_is_nearly_that_of_its_formula() -> None:
    field = DisplacementField("sine", amplitude=2.0, waves=1.5).draw((100, 90), 5, dtype=DOUBLE)
    expected = 2.0 * 2 * math.pi * 1.5 / 100
    assert (field.gradient <= expected * (1 + 1e-9)).all()
    assert (field.gradient >= 0.98 * expected).all()


def test_max_entropy_fields_have_the_law_that_they_say() -> None:
    """Frequencies i, j along both axes of an oblong image: variance 1 / ((i n / W)^2 + (j n / H)^2), none above cut."""
    height, width, source = 12, 20, torch.Generator().manual_seed(0)
    tau = fields._max_entropy(DisplacementField(gradient=0.5, cut=2), (height, width), 4000, source)  # before scaling
    sines = [
        torch.tensor([[math.sin(math.pi * k * (p + 0.5) / n) for p in range(n)] for k in range(1, 4)], dtype=DOUBLE)
        for n in (height, width)
    ]
    found = torch.einsum("nchw,jh,iw->ncji", tau, *sines) * 4 / (height * width)
    energy = found.square().mean((0, 1))
    for j, i in [(1, 1), (1, 2), (2, 1)]:
        expected = 1 / ((i * 20 / 20) ** 2 + (j * 20 / 12) ** 2)
        assert energy[j - 1, i - 1].item() == pytest.approx(expected, rel=0.1)
    assert energy[2].max() < 1e-20
    assert energy[:, 2].max() < 1e-20


def test_seeds_say_everything_and_torchs_own_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (DisplacementField(gradient=0.2).draw((8, 8), 2, seed).tau for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(scale=st.floats(1.0, 50.0), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_what_may_fold_is_refused_with_its_gradient_and_a_remedy(scale: float, seed: int) -> None:
    tau = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    tau = tau / gradient_sup(tau) * scale * (1 + 1e-9)
    with pytest.raises(ConfigError, match=f"{scale:.4g}, expected less than 1.*scale the field down"):
        Deformation(tau)


def test_an_amplitude_that_folds_is_refused_and_the_largest_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sup\|grad tau\| = .*lower amplitude=9.0 px below .* px, or lower cut") as e:
        DisplacementField("max_entropy", amplitude=9.0).draw((28, 28), 3, seed=1)
    largest = float(str(e.value).split("below ")[1].split(" px")[0])
    DisplacementField("max_entropy", amplitude=0.99 * largest).draw((28, 28), 3, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": 1.0}, "gradient=1.0.*lower gradient"),
        ({"gradient": -0.1}, "gradient=-0.1"),
        ({}, "expected gradient or amplitude"),
        ({"gradient": 0.1, "amplitude": 1.0}, "expected gradient or amplitude"),
        ({"amplitude": math.inf}, "amplitude=inf"),
        ({"kind": "wave", "gradient": 0.1}, "kind must be one of max_entropy, sine, affine, elastic, got 'wave'"),
        ({"gradient": 0.1, "cut": 0}, "cut >= 1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DisplacementField(**arguments)


def test_bad_fields_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 5, 5\)"):
        Deformation(torch.zeros(2, 5, 5))
    with pytest.raises(DtypeError, match="int64"):
        Deformation(torch.zeros(1, 2, 5, 5, dtype=torch.long))
    with pytest.raises(ConfigError, match="not finite"):
        Deformation(torch.full((1, 2, 5, 5), math.nan))
    with pytest.raises(ConfigError, match="1 x 1 pixels are constant"):
        DisplacementField("affine", gradient=0.1).draw((1, 1))
