"""Exact margins of the last layer and radii of dilations, against linear programs and bisection."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import NotCertifiable
from morphlightning.guarantees.robustness import Box, box_around, dilation_radius, exact_margins, propagate

LAST = {
    "dilation": layers.Dilation,
    "erosion": layers.Erosion,
    "signed dilation": layers.SignedDilation,
    "signed erosion": layers.SignedErosion,
}


def random_layer(
    kind: type[layers.MorphLayer], n: int, generator: torch.Generator, missing: float
) -> layers.MorphLayer:
    layer = kind(n, 3)  # type: ignore[arg-type, call-arg]
    with torch.no_grad():
        layer.weight.copy_(0.4 * torch.randn(layer.weight.shape, generator=generator))
        layer.mask.copy_(torch.rand(layer.weight.shape, generator=generator) >= missing)
        layer.mask[:, 0] = True
    return layer.double()


def pieces(layer: layers.MorphLayer, unit: int) -> list[tuple[int, int, float]]:
    """Output ``unit`` as the maximum (for dilations) or minimum of sign * z[j] + c, of (j, sign, c)."""
    inputs = layer.weight.shape[1] // (2 if hasattr(layer, "both") else 1)
    rows = layer.effective_weight[unit].tolist()
    outer = 1 if "dilation" in layer.op else -1
    return [(k % inputs, 1 if k < inputs else -1, outer * w) for k, w in enumerate(rows) if w > -math.inf]


def worst_by_programs(layer: layers.MorphLayer, box: Box, label: int, other: int) -> float:
    """min f_label - f_other: for each piece of the convex function that is subtracted one linear program."""
    dilation = layer.op == "dilation"
    upper, lower = pieces(layer, label if dilation else other), pieces(layer, other if dilation else label)
    sign = 1 if dilation else -1  # f = -D for erosions, D = max of -(pieces)
    n, best = box.lower.numel(), math.inf
    rows, right = [], []
    for j, s, c in upper:  # t >= sign * (s z_j + c)
        row = np.zeros(n + 1)
        row[j], row[-1] = sign * s, -1
        rows.append(row)
        right.append(-sign * c)
    bounds = [*zip(box.lower.tolist(), box.upper.tolist(), strict=True), (None, None)]
    for j, s, c in lower:
        objective = np.zeros(n + 1)
        objective[-1] = 1
        objective[j] -= sign * s
        solved = linprog(objective, A_ub=np.array(rows), b_ub=np.array(right), bounds=bounds)
        best = min(best, solved.fun - sign * c)
    return best


@pytest.mark.parametrize("kind", LAST)
def test_margins_of_the_last_layer_are_those_of_linear_programs(kind: str) -> None:
    """LIP-3: exact worst margins against programs, one for each piece of the function that is subtracted."""
    generator = torch.Generator().manual_seed(len(kind))
    for case in range(5):
        n = int(torch.randint(1, 6, (1,), generator=generator))
        layer = random_layer(LAST[kind], n, generator, missing=0.3 if case % 2 else 0.0)
        box = box_around(torch.rand(1, n, generator=generator, dtype=torch.float64), 0.05 + 0.1 * case)
        for label in range(3):
            expected = min(worst_by_programs(layer, Box(*(e[0] for e in box)), label, k) for k in {0, 1, 2} - {label})
            found = exact_margins(layer, box, torch.tensor([label]))
            assert float(found) == pytest.approx(expected, abs=1e-9)
            assert float(found) <= expected + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(LAST)), st.floats(1e-3, 1))
def test_exact_margins_are_no_less_than_those_of_intervals(seed: int, kind: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = random_layer(LAST[kind], int(torch.randint(1, 9, (1,), generator=generator)), generator, 0.2)
    x = torch.rand(6, layer.in_features, generator=generator, dtype=torch.float64)  # type: ignore[arg-type]
    box, labels = box_around(x, eps), torch.randint(3, (6,), generator=generator)
    assert (exact_margins(layer, box, labels) >= propagate(layer, box).margins(labels) - 1e-13).all()


def dilations(seed: int, n: int, missing: float = 0.0) -> tuple[layers.Dilation, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layer = random_layer(layers.Dilation, n, generator, missing)
    x = torch.rand(20, n, generator=generator, dtype=torch.float64)
    return layer, x, layer(x).detach().argmax(1)  # type: ignore[return-value]


def radii_by_bisection(layer: layers.Dilation, x: Tensor, labels: Tensor) -> Tensor:
    low, high = torch.zeros(len(x), 1, dtype=x.dtype), torch.full((len(x), 1), 64.0, dtype=x.dtype)
    for _ in range(50):
        middle = (low + high) / 2
        holds = exact_margins(layer, Box(x - middle, x + middle), labels)[:, None] > 0
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low[:, 0]


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_radii_of_a_dilation_are_those_of_bisection_and_no_less_than_by_constants(missing: float) -> None:
    """LIP-3: the closed form."""
    for seed, n in ((0, 2), (1, 5), (2, 40)):
        layer, x, labels = dilations(seed, n, missing)
        radii = dilation_radius(layer, x, labels).radius
        torch.testing.assert_close(radii.clamp_max(64), radii_by_bisection(layer, x, labels), atol=1e-10, rtol=0)
        logits = layer(x).detach()
        gaps = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -math.inf).amax(1)
        assert (radii >= gaps / 2 - 1e-15).all()


def test_the_example_flips_just_beyond_the_radius_and_not_before() -> None:
    """LIP-4: at 1.001 r the decision is another one, at 0.999 r nothing that was tried changes it."""
    tried = 0
    for seed in range(12):
        layer, x, labels = dilations(seed, 30, 0.1 * (seed % 3))
        case = dilation_radius(layer, x, labels)
        some = case.radius.isfinite() & (case.radius > 0)
        beyond = layer(case.example[some]).detach()
        own = beyond.gather(1, labels[some, None])[:, 0]
        assert (beyond.scatter(1, labels[some, None], -math.inf).amax(1) > own).all()
        far = (case.example - x).abs().amax(1)
        torch.testing.assert_close(far[some], 1.001 * case.radius[some])
        corner = 0.999 * case.radius.nan_to_num(posinf=1)[:, None] * (torch.rand_like(x) - 0.5).sign()
        for near in (x + 0.999 / 1.001 * (case.example - x), x + corner):
            assert (layer(near).argmax(1) == labels)[some].all()
        tried += int(some.sum())
    assert tried > 100


def test_a_class_that_never_catches_up_leaves_the_radius_infinite() -> None:
    layer = layers.Dilation(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.5]]))
    case = dilation_radius(layer, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert case.radius.tolist() == [math.inf]
    assert case.example.tolist() == [[0.0, 0.0]]
    wrong = dilation_radius(layer, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1]))
    assert wrong.radius.tolist() == [0.0]


def test_other_layers_are_refused() -> None:
    box = box_around(torch.rand(2, 3), 0.1)
    for layer in (nn.Linear(3, 2), layers.SoftDilation(3, 2), nn.Identity()):
        with pytest.raises(NotCertifiable, match="method='interval'"):
            exact_margins(layer, box, torch.tensor([0, 1]))
    with pytest.raises(NotCertifiable, match="Dilation alone, got Erosion"):
        dilation_radius(layers.Erosion(3, 2), torch.rand(2, 3), torch.tensor([0, 1]))
