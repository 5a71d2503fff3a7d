"""The histogram of gaps: exact edges, what is counted, and quantiles that never promise too much."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphlightning.layers import gap_quantile
from morphlightning.ops.statistics import GAP_BINS, gap_histogram

GAPS = st.lists(st.floats(2.0**-126, 2.0**127), min_size=1, max_size=40)


def histogram(gaps: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    gap = torch.tensor(gaps, dtype=dtype)
    return gap_histogram(torch.ones_like(gap), torch.zeros_like(gap), gap)


@given(GAPS, st.floats(0, 0.999))
def test_a_quantile_is_reached_by_the_share_it_promises_and_at_most_an_eighth_too_low(gaps, quantile) -> None:
    seen = float(gap_quantile(histogram(gaps), quantile))
    assert sum(gap >= seen for gap in gaps) >= (1 - quantile) * len(gaps) - 1e-9
    exact = sorted(gaps)[math.floor(quantile * len(gaps))]
    assert exact * 7 / 8 <= seen <= exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_exact_in_every_format(dtype: torch.dtype) -> None:
    for edge in (1.0, 1.125, 1.875, 0.75, 2.0**-125, 2.0**-24, 1.875 * 2.0**127):
        below = float(torch.nextafter(torch.tensor(edge, dtype=dtype), torch.tensor(0.0, dtype=dtype)))
        assert gap_quantile(histogram([edge], dtype), 0.5) == edge
        assert edge * 7 / 8 <= gap_quantile(histogram([below], dtype), 0.5) < edge


def test_ties_and_single_candidates_have_bins_of_their_own() -> None:
    seen = histogram([0.0, 0.0, 2.0**-140, 1.0, math.inf])
    assert seen.shape == (GAP_BINS,)
    assert (seen[0], seen[-1], seen.sum()) == (3, 1, 5)
    assert gap_quantile(seen, 0.0) == 1.0  # ties are left out
    assert gap_quantile(seen, 0.5) == math.inf
    assert gap_quantile(histogram([0.0, 0.0]), 0.1) == math.inf
    assert gap_quantile(torch.zeros(GAP_BINS, dtype=torch.float64), 0.1) == math.inf


def test_rows_without_a_message_or_a_winner_are_left_out() -> None:
    gap, arg = torch.tensor([[1.0, 2.0], [4.0, math.inf]]), torch.tensor([[0, 3], [1, -1]])
    seen = gap_histogram(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), arg, gap)
    assert seen.sum() == 2
    assert gap_quantile(seen, 0.0) == 1.0
    assert gap_quantile(seen, 0.5) == 4.0
