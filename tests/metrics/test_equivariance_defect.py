from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from morphlightning.errors import BrokenCertificateError, ConfigError, DtypeError, ShapeError
from morphlightning.guarantees.stability import register_equivariances
from morphlightning.interfaces import Equivariances
from morphlightning.layers import Dilation2d, Erosion, MeanShift
from morphlightning.metrics import EquivarianceDefect


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Dilation2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), MeanShift(72), Erosion(72, 4)).eval()


def test_a_morphological_network_is_equivariant_to_brightness_and_says_so() -> None:
    metric = EquivarianceDefect("brightness")
    for part in images().split(4):
        metric.update(network(), part)
    found = metric.compute()
    names = ("0", "1", "2", "3", "4", "network")
    assert list(found) == [f"{name}/{key}" for name in names for key in ("max", "mean", "relative")]
    assert found["1/max"] == found["2/max"] == 0
    assert found["network/max"] < 1e-6
    assert metric.excess.max() <= 0


def test_windowed_layers_are_equivariant_to_shifts_bit_for_bit_and_heads_are_not() -> None:
    metric = EquivarianceDefect("shift", amount=2)
    metric.update(network(), images())
    found = metric.compute()
    assert {key.split("/")[0] for key in found} == {"0", "1", "network"}, "the others see no images"
    assert found["0/max"] == found["1/max"] == 0
    assert found["network/relative"] > 0.01


def test_agrees_with_the_formula_over_batches() -> None:
    x, linear = images(9).double(), nn.Linear(144, 3).double()
    net = nn.Sequential(nn.Flatten(), linear)
    metric = EquivarianceDefect("gain", amount=2.0)
    for part in x.split(4):
        metric.update(net, part)
    found = metric.compute()
    defect = linear.bias.detach().abs()  # |f(2x) - 2 f(x)|
    assert found["1/max"].item() == pytest.approx(defect.max().item())
    assert found["network/mean"].item() == pytest.approx(defect.mean().item())
    y = [net(part).detach() for part in x.split(4)]
    spread = sum((part - part.roll(1, 0)).square().sum() for part in y) / 9
    assert found["1/relative"].item() == pytest.approx((defect.square().sum() / spread).item())


class Drifting(nn.Module):
    """A layer that would be a shift of all values, were it not for the place of a pixel."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.drift = drift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drift * torch.arange(x.shape[-1])


@register_equivariances(Drifting)
def _drifting(module: Drifting) -> Equivariances:
    return Equivariances(bitwise=frozenset({"shift"}))


def test_a_claimed_zero_that_is_not_zero_raises_and_names_the_layer() -> None:
    metric = EquivarianceDefect("shift")
    metric.update(nn.Sequential(nn.ReLU(), Drifting(0.0)), images())
    assert metric.compute()["1/max"] == 0
    metric.reset()
    metric.update(nn.Sequential(nn.ReLU(), Drifting(0.5)), images())
    with pytest.raises(BrokenCertificateError, match=r"commute with shift do not: 1 by 5\.5;"):
        metric.compute()


def test_functions_are_measured_as_a_whole() -> None:
    metric = EquivarianceDefect("sup")
    metric.update(lambda x: x.flatten(1).mean(1), images())
    assert list(metric.compute()) == ["network/max", "network/mean", "network/relative"]
    assert metric.compute()["network/max"] > 0.01
    whole = EquivarianceDefect("sup", per_layer=False)
    whole.update(network(), images())
    assert list(whole.compute()) == ["network/max", "network/mean", "network/relative"]


def test_a_collection_keeps_metrics_of_equal_values_apart() -> None:
    """Two groups of which the first batch says 0 both are not one metric."""
    collection = MetricCollection({group: EquivarianceDefect(group) for group in ("sup", "inf")})
    pool = nn.Sequential(nn.ReLU())
    collection.update(pool, images())
    assert len(collection.compute_groups) == 2


def test_forward_of_the_metric_gives_the_value_of_the_batch() -> None:
    metric = EquivarianceDefect("gain")
    assert metric(network(), images())["network/max"] > 0
    metric(network(), 3 * images())
    once = EquivarianceDefect("gain")
    for part in (images(), 3 * images()):
        once.update(network(), part)
    assert metric.compute() == once.compute()


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="group must be one of shift"):
        EquivarianceDefect("rotation")
    with pytest.raises(ConfigError, match="whole pixels"):
        EquivarianceDefect("shift", amount=0.5)
    with pytest.raises(ShapeError, match="for 'shift' expected 4 axes"):
        EquivarianceDefect("shift").update(network(), torch.zeros(2, 8))
    with pytest.raises(ShapeError, match="batch of 2"):
        EquivarianceDefect("sup").update(network(), images(1))
    with pytest.raises(DtypeError, match="int64"):
        EquivarianceDefect("gain").update(network(), torch.zeros(2, 1, 4, 4, dtype=torch.long))
    metric = EquivarianceDefect("gain")
    metric.update(network(), images())
    with pytest.raises(ConfigError, match="other layers"):
        metric.update(network()[:2], images())
