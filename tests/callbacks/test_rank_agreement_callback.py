from __future__ import annotations

import pytest
import torch
from torch import nn

from morphlightning.callbacks import RankAgreement
from morphlightning.callbacks.rank_agreement import _describe, _groups, _replicated, checksum
from morphlightning.errors import ConfigError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128])
def test_checksum_sees_any_single_change(dtype: torch.dtype) -> None:
    tensor = torch.ones(5, 3, dtype=dtype)
    sums = {int(checksum(tensor))}
    for position in range(15):
        other = tensor.clone()
        other.view(-1)[position] = 0
        sums.add(int(checksum(other)))
    assert len(sums) == 16


def test_checksum_sees_the_last_bit_and_the_order() -> None:
    tensor = torch.rand(1000)
    other = tensor.clone()
    other[77] = torch.nextafter(other[77], torch.tensor(2.0))
    assert checksum(tensor) != checksum(other)
    assert checksum(tensor) != checksum(tensor.flip(0))
    assert checksum(tensor.reshape(10, 100).T) == checksum(tensor.reshape(10, 100).T.contiguous())
    assert checksum(torch.tensor(3.0)) != checksum(torch.tensor(4.0))
    assert checksum(torch.empty(0)) == 0


def test_running_statistics_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("beta", torch.ones(()))
    assert [name for name, _ in _replicated(module)] == ["0.weight", "0.bias", "1.weight", "1.bias", "beta"]


def test_groups_of_ranks() -> None:
    groups = _groups(torch.tensor([4, 7, 4]))
    assert groups == [[0, 2], [1]]
    assert _describe(groups) == "ranks 0, 2 against rank 1"


def test_negative_intervals_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"every_n_steps must be 0 .* got -1"):
        RankAgreement(every_n_steps=-1)
    with pytest.raises(ConfigError, match="first_n_steps"):
        RankAgreement(first_n_steps=-3)
