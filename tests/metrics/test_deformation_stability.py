from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DtypeError, ShapeError
from morphlightning.guarantees.stability import DisplacementField, deform
from morphlightning.metrics import DeformationStability

KEYS = {f"{name}@{k}" for name in ("D", "G", "R", "C50", "C90", "C100") for k in ("0.1", "0.3")}


def images(count: int = 24) -> Tensor:
    smooth = nn.AvgPool2d(5, 1, 2)
    return smooth(torch.rand(count, 1, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def measured(network, x: Tensor, batch: int = 24, **settings) -> dict[str, Tensor]:
    metric = DeformationStability(gradients=(0.1, 0.3), **settings)
    for part in x.split(batch):
        metric.update(network, part)
    return metric.compute()


def test_the_ratio_of_isometries_and_scalings_is_one() -> None:
    """GEO-3"""
    orthogonal = torch.linalg.qr(torch.randn(120, 120, dtype=torch.float64))[0]
    networks = [lambda x: x, lambda x: x.flatten(1) @ orthogonal, lambda x: -3 * x + 2]
    found = [measured(network, images()) for network in networks]
    for one in found:
        assert set(one) == KEYS
        for key in ("R@0.1", "R@0.3"):
            assert one[key].item() == pytest.approx(1, abs=1e-12)
        assert one["D@0.3"] > one["D@0.1"] > 0
    for key in KEYS - {"C50@0.1", "C90@0.1", "C100@0.1", "C50@0.3", "C90@0.3", "C100@0.3"}:
        assert found[2][key].item() == pytest.approx(found[0][key].item()), (
            "of a scaling they are those of the identity"
        )
    assert found[2]["C50@0.1"].item() == pytest.approx(3 * found[0]["C50@0.1"].item())


def test_agrees_with_its_formula() -> None:
    """One field and one noise for all, put in place of the random ones."""
    x = images(9)
    network = nn.Sequential(nn.Flatten(), nn.Linear(120, 4)).double()
    field = DisplacementField(gradient=0.2).draw((12, 10), 1, dtype=torch.float64)
    metric = DeformationStability(gradients=(0.2,))

    class Fixed:
        def draw(self, *args, **kwargs):
            return field

    metric.fields = [Fixed()]
    metric.update(network, x)
    found = metric.compute()
    with torch.no_grad():
        y, z = network(x), network(deform(x, field))
    pairs = torch.stack([(a - b).square().sum() for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    assert found["D@0.2"].item() == pytest.approx((((z - y) ** 2).sum(1).mean() / pairs.mean()).item())
    constants = (z - y).norm(dim=1) / (0.2 * x.flatten(1).norm(dim=1))
    assert found["C100@0.2"].item() == pytest.approx(constants.max().item())
    assert found["C50@0.2"].item() == pytest.approx(constants.median().item())
    assert found["R@0.2"] == found["D@0.2"] / found["G@0.2"]


def test_maxima_are_stabler_to_deformations_than_to_noise_and_averages_the_other_way_round() -> None:
    """Of smooth images, with maxima of 1."""
    x = torch.randn(48, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        x = nn.AvgPool2d(5, 1, 2, count_include_pad=False)(x)
    x = x - x.amin((2, 3), keepdim=True)
    x = x / x.amax((2, 3), keepdim=True)
    networks = (nn.AdaptiveMaxPool2d(1), nn.MaxPool2d(4), nn.AvgPool2d(4))
    total, local, average = (measured(lambda x, f=f: f(x), x)["R@0.3"].item() for f in networks)
    assert total < 0.1
    assert 0.5 < local < 1
    assert average > 5


def test_batches_do_not_matter_to_the_spread_and_order_matters_to_nothing() -> None:
    x = images()
    in_parts = DeformationStability(gradients=(0.2,))
    for part in (x[8:16], x[16:], x[:8]):
        in_parts.update(lambda x: x, part)
    other_order = DeformationStability(gradients=(0.2,))
    for part in (x[:8], x[8:16], x[16:]):
        other_order.update(lambda x: x, part)
    one, other = in_parts.compute(), other_order.compute()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key])
    once = DeformationStability(gradients=(0.2,))
    once.update(lambda x: x, x)
    torch.testing.assert_close(once.squares, in_parts.squares)
    torch.testing.assert_close(once.total, in_parts.total)


def test_seeds_say_everything_and_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(120), nn.Linear(120, 3)).double().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    one, same, other = (measured(network, images(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert one == same
    assert one["D@0.1"] != other["D@0.1"]
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_float32_and_float64_agree() -> None:
    x = images()
    single, double = (measured(lambda x: x, x.to(dtype)) for dtype in (torch.float32, torch.float64))
    assert single["G@0.1"].item() == pytest.approx(double["G@0.1"].item(), rel=0.05)  # other fields, for other bits
    assert single["R@0.1"].item() == pytest.approx(1, abs=1e-5)


def test_black_images_and_constant_networks() -> None:
    x = torch.cat([images(6), torch.zeros(2, 1, 12, 10, dtype=torch.float64)])
    found = measured(lambda x: x, x)
    assert found["C100@0.1"].isfinite()
    constant = measured(lambda x: x.new_ones(len(x), 3), x)
    assert constant["D@0.1"].isnan()
    assert constant["R@0.1"].isnan()
    assert constant["C100@0.1"] == 0


def test_forward_of_the_metric_gives_the_value_of_the_batch() -> None:
    metric = DeformationStability(gradients=(0.1, 0.3))
    first, second = images()[:12], images()[12:]
    assert metric(lambda x: x, first)["D@0.1"] == measured(lambda x: x, first)["D@0.1"]
    metric(lambda x: x, second)
    assert metric.compute()["D@0.1"].item() == pytest.approx(measured(lambda x: x, images(), 12)["D@0.1"].item())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"gradients=\(0.1, 1.0\), expected .* lower them"):
        DeformationStability(gradients=(0.1, 1.0))
    with pytest.raises(ConfigError, match="quantiles"):
        DeformationStability(quantiles=(50,))
    metric = DeformationStability()
    with pytest.raises(ShapeError, match=r"\(2, 8\)"):
        metric.update(lambda x: x, torch.zeros(2, 8))
    with pytest.raises(DtypeError, match="uint8"):
        metric.update(lambda x: x, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"\(1,\) from the network"):
        metric.update(lambda x: x.new_zeros(1), images(2))
    metric.update(lambda x: x, images(2))
    with pytest.raises(ShapeError, match="reset the metric"):
        metric.update(lambda x: x, images(2)[..., :5])
