from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.metrics import GeneralizationGap
from morphlightning.models import MarginHinge


def test_it_is_that_of_all_samples_in_batches_of_any_size() -> None:
    logits, labels = torch.randn(2, 90, 4), torch.randint(4, (2, 90))
    logits[0] += 2 * F.one_hot(labels[0], 4)  # better on training data
    metric = GeneralizationGap(quantiles=(0.25, 0.5))
    for part in (0, 1):
        for z, y in zip(logits[part].split(25), labels[part].split(25), strict=True):
            metric.update(z, y, train=part == 0)
    values = metric.compute()
    losses = [F.cross_entropy(logits[part], labels[part]) for part in (0, 1)]
    accuracies = [(logits[part].argmax(1) == labels[part]).float().mean() for part in (0, 1)]
    torch.testing.assert_close(values["loss_gap"], losses[1] - losses[0])
    torch.testing.assert_close(values["accuracy_gap"], accuracies[0] - accuracies[1])
    assert values["loss_gap"] > 0 < values["accuracy_gap"]
    for part, name in enumerate(("train", "test")):
        z, y = logits[part].tolist(), labels[part].tolist()
        margins = [row[k] - max(v for j, v in enumerate(row) if j != k) for row, k in zip(z, y, strict=True)]
        for level, key in ((0.25, "q25"), (0.5, "q50")):
            expected = torch.tensor(margins).quantile(level)
            torch.testing.assert_close(values[f"{name}_margin_{key}"], expected)
    assert len(values) == 6
    metric.reset()
    metric.update(logits[0], labels[0], train=True)
    assert metric.compute()["loss_gap"].isnan()


def test_what_has_no_samples_is_not_a_number() -> None:
    metric = GeneralizationGap()
    metric.update(torch.randn(5, 3), torch.randint(3, (5,)), train=True)
    values = metric.compute()
    assert values["test_margin_q50"].isnan()
    assert values["train_margin_q50"].isfinite()


def test_another_loss_and_low_precision() -> None:
    loss = MarginHinge(0.2, 0.1)
    metric = GeneralizationGap(loss)
    z, y = torch.randn(6, 3, dtype=torch.bfloat16, requires_grad=True), torch.randint(3, (6,))
    metric.update(z, y, train=True)
    metric.update(z.flip(1), y, train=False)
    expected = loss(z.flip(1), y) - loss(z, y)
    torch.testing.assert_close(metric.compute()["loss_gap"], expected.detach())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="quantiles"):
        GeneralizationGap(quantiles=(50,))
    with pytest.raises(ShapeError, match="labels"):
        GeneralizationGap().update(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), train=True)
