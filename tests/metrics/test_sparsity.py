from __future__ import annotations

import math

import pytest
import torch

from morphlightning.errors import ShapeError
from morphlightning.metrics import Sparsity


def test_agrees_with_the_formula_over_batches() -> None:
    code = torch.randn(20, 6, dtype=torch.float64)
    metric = Sparsity()
    for batch in code.split(7):
        metric.update(batch)
    rows = [
        (math.sqrt(6) - sum(map(abs, row)) / math.sqrt(sum(v * v for v in row))) / (math.sqrt(6) - 1)
        for row in code.tolist()
    ]
    assert metric.compute().item() == pytest.approx(sum(rows) / 20, rel=1e-12)


@pytest.mark.parametrize(
    ("row", "expected"),
    [([0, 3, 0, 0], 1), ([2, -2, 2, 2], 0), ([0, 0, 0, 0], 1), ([0, 1e-30, 0, 0], 1), ([1e30, 1e30, 1e30, 1e30], 0)],
)
def test_extremes(row: list[float], expected: float) -> None:
    metric = Sparsity()
    metric.update(torch.tensor([row], dtype=torch.float32))
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_a_code_that_is_not_finite_is_not_called_sparse() -> None:
    metric = Sparsity()
    metric.update(torch.tensor([[math.nan, 1.0]]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_shape_is_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="K >= 2"):
        Sparsity().update(torch.zeros(shape))
