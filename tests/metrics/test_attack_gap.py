from __future__ import annotations

import pytest
import torch

from morphlightning.errors import BrokenCertificateError, DtypeError, ShapeError
from morphlightning.guarantees.robustness import Attacked
from morphlightning.metrics import AttackGap


def attacked(*margins: float) -> Attacked:
    return Attacked(torch.tensor(margins), torch.zeros(len(margins), 2))


def test_it_is_the_share_of_samples_that_are_neither_certified_nor_broken() -> None:
    gap = AttackGap()
    gap.update(attacked(0.3, 0.1, -0.1), torch.tensor([True, False, False]))
    gap.update(attacked(0.2, 0.0), torch.tensor([True, False]))
    assert gap.compute() == pytest.approx(1 / 5)


def test_a_broken_certificate_fails_and_is_named_although_the_mean_is_positive() -> None:
    gap = AttackGap()
    gap.update(attacked(0.3, 0.2, 0.1), torch.tensor([False, False, False]))
    gap.update(attacked(0.1, -0.25), torch.tensor([True, True]))
    with pytest.raises(BrokenCertificateError, match=r"1 of 2 certified samples .*radius: 4 \(margin -0.25\)"):
        gap.compute()
    gap.reset()
    gap.update(attacked(0.0), torch.tensor([True]), samples=torch.tensor([71]))  # a tie counts as broken
    with pytest.raises(BrokenCertificateError, match=r"71 \(margin 0\)"):
        gap.compute()


def test_many_broken_samples_are_counted_and_some_are_named() -> None:
    gap = AttackGap()
    gap.update(attacked(*[-1.0] * 25), torch.ones(25, dtype=torch.bool))
    with pytest.raises(BrokenCertificateError, match=r"25 of 25 .*9 \(margin -1\) and 15 more"):
        gap.compute()


def test_bad_updates() -> None:
    with pytest.raises(DtypeError, match="radius has to be"):
        AttackGap().update(attacked(0.1), torch.tensor([0.2]))
    with pytest.raises(ShapeError, match="certificates"):
        AttackGap().update(attacked(0.1), torch.tensor([True, False]))
