"""Networks of integers: bit-exact, non-expansive without tolerance, and nothing overflows."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morphlightning import backends, layers
from morphlightning.errors import ConfigError, DataError, NotCertifiable, NotSupportedError
from morphlightning.guarantees.robustness import (
    Box,
    IntegerNetwork,
    agreement,
    certified_margins,
    certified_radii,
    export_int16,
)
from morphlightning.metrics import CertifiedAccuracy, CertifiedRadius
from morphlightning.ops.integer import maxplus_int16

LAYERS = (layers.SignedDilation, layers.SignedErosion, layers.Dilation, layers.Erosion)


def build(seed: int, depth: int, scale: float = 0.3, missing: float = 0.2) -> tuple[nn.Sequential, Tensor]:
    """A random network, and images of grey levels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [*torch.randint(1, 8, (depth + 1,), generator=generator).tolist(), 3]
    parts: list[nn.Module] = [nn.Flatten(), layers.Shift(0.5)]
    for n, m in pairwise(sizes):
        kind = LAYERS[int(torch.randint(4, (1,), generator=generator))]
        parts += [kind(n, m), layers.MeanShift(m), nn.Dropout()]  # type: ignore[call-arg]
    network = nn.Sequential(*parts).eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, layers.MorphLayer):
                part.weight.copy_(scale * torch.randn(part.weight.shape, generator=generator))
                part.mask.copy_(torch.rand(part.mask.shape, generator=generator) >= missing)
                part.mask[:, 0] = True
            if isinstance(part, layers.MeanShift):
                part.mean.copy_(0.2 * torch.randn(part.mean.shape, generator=generator))
    return network, torch.randint(0, 256, (7, 1, sizes[0]), generator=generator)


def exact(network: nn.Sequential, levels: Tensor, unit: int) -> Tensor:
    """The network with rounded weights in float64, in which these integers are exact."""
    x = levels.double()
    for part in network:
        if isinstance(part, layers.MorphLayer):
            w = (part.effective_weight.double() * unit).round()
            z = torch.cat([x, -x], 1) if hasattr(part, "both") else x
            x = (z[:, None] + w).amax(-1) if part.op == "dilation" else (z[:, None] - w).amin(-1)
        elif isinstance(part, layers.MeanShift | layers.Shift):
            x = x - ((part.mean if isinstance(part, layers.MeanShift) else part.offset).double() * unit).round()
        else:
            x = part(x)
    return x


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3), st.sampled_from([1, 2, 8]))
def test_integers_are_the_rounded_network_bit_for_bit(seed: int, depth: int, sublevels: int) -> None:
    network, images = build(seed, depth)
    exported = export_int16(network, sublevels=sublevels)
    logits = exported(images)
    assert logits.dtype == torch.int16
    assert torch.equal(logits.double(), exact(network, images * sublevels, 255 * sublevels))
    assert torch.equal(exported(images.float() / 255), logits)
    with backends.use("eager"):
        assert torch.equal(exported(images), logits)
    compared = agreement(network, exported, images.float() / 255)
    assert compared.difference <= compared.bound + 1e-5
    assert 0 <= compared.decisions <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3), st.integers(1, 255), st.sampled_from([1, 4]))
def test_no_tolerance(seed: int, depth: int, levels: int, sublevels: int) -> None:
    """LIP-6: logits differ by at most as many levels as images do, and certified decisions never change."""
    network, images = build(seed, depth)
    exported = export_int16(network, sublevels=sublevels)
    logits = exported(images).int()
    labels = logits.argmax(1)
    margins = exported.margins(images, labels, levels)
    generator = torch.Generator().manual_seed(seed)
    for kind in range(8):
        change = torch.randint(-levels, levels + 1, images.shape, generator=generator)
        change = levels * change.sign() if kind % 2 else change
        others = (images + change).clamp(0, 255)
        moved = (exported(others).int() - logits).abs().amax(1)
        assert (moved <= sublevels * (others - images).abs().flatten(1).amax(1)).all()
        found = exported(others).int()
        worst = found.gather(1, labels[:, None])[:, 0] - found.scatter(1, labels[:, None], -(1 << 20)).amax(1)
        assert (worst >= margins).all()
        between = (images + change * torch.rand(images.shape, generator=generator)).clamp(0, 255).float() / 255
        assert (exported(between).argmax(1) == labels)[margins > 0].all()


def test_boxes_are_attained_by_integers() -> None:
    """One signed layer: the ends of the box are values of it, at the integers next to kinks."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        layer = layers.SignedDilation(2, 3) if seed % 2 else layers.SignedErosion(2, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.randint(-9, 10, layer.weight.shape, generator=generator) / 255)
        exported = export_int16(nn.Sequential(layer))
        x = torch.randint(0, 12, (1, 2), generator=generator)
        reach = int(torch.randint(0, 6, (1,), generator=generator))
        everything = torch.cartesian_prod(*(torch.arange(max(0, int(v) - reach), int(v) + reach + 1) for v in x[0]))
        values = exported(everything)
        part = exported.parts[0]
        box = part.bounds(Box((x - reach).clamp_min(0).to(torch.int16), (x + reach).to(torch.int16)))  # type: ignore[operator]
        assert torch.equal(box.lower[0], values.amin(0))
        assert torch.equal(box.upper[0], values.amax(0))


def test_certificates_of_integers_are_in_whole_grey_levels() -> None:
    network, images = build(5, 2)
    exported, x = export_int16(network), images.float() / 255
    labels = exported(images).argmax(1)
    assert exported.whole_levels(0.3, x) == 77
    assert exported.whole_levels(0.2, x) == 51
    assert exported.whole_levels(8 / 255, x) == 8
    assert exported.whole_levels(0.1001, x) == 26
    levels = exported.radii(images, labels, 255)
    radii = certified_radii(network, x, labels, "int16")
    torch.testing.assert_close(radii, levels.double() / 255)
    torch.testing.assert_close(certified_radii(exported, images, labels, "int16", clip=(0, 255)), levels.double())
    for i, level in enumerate(levels.tolist()):
        if level:
            assert (exported.margins(images, labels, level) > 0)[i]
            assert (certified_margins(network, x, labels, level / 255, "int16") > 0)[i]
        if level < 255:
            assert not (exported.margins(images, labels, level + 1) > 0)[i]


def test_integers_certify_as_constants_and_intervals_do_up_to_rounding() -> None:
    network, images = build(3, 2, missing=0.0)
    exported, x = export_int16(network, sublevels=8), images.float() / 255
    labels = network(x).argmax(1)
    for levels in (5, 30):
        of_integers = exported.unit * exported.margins(images, labels, levels).double()
        of_floats = certified_margins(network, x, labels, levels / 255, "interval")
        assert (of_integers - of_floats).abs().max() <= 2 * exported.error_bound + 2 * exported.unit
        logits = exported(images).int()
        gaps = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -(1 << 20)).amax(1)
        assert (exported.margins(images, labels, levels) >= gaps - 2 * 8 * levels).all()


def test_metrics_count_the_exported_network() -> None:
    network, images = build(5, 2)
    exported, x = export_int16(network), images.float() / 255
    labels = exported(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    accuracy, radius = CertifiedAccuracy([0.01, 0.1], "int16"), CertifiedRadius(method="int16")
    for metric in (accuracy, radius):
        metric.update(network, x, labels)
    assert float(accuracy.compute()["accuracy"]) == pytest.approx(6 / 7)
    hits = float((exported.margins(images, labels, 26) > 0).double().mean())
    assert float(accuracy.compute()["certified@0.1"]) == pytest.approx(hits)
    mean = float(exported.radii(images, labels, 255).double().mean()) / 255
    assert float(radius.compute()["mean"]) == pytest.approx(mean)
    grey = CertifiedAccuracy(26, "int16", clip=(0, 255))
    grey.update(exported, images, labels)
    assert float(grey.compute()["certified@26"]) == pytest.approx(hits)


def test_what_does_not_fit_is_refused_by_name() -> None:
    network, _ = build(0, 1)
    with pytest.raises(NotCertifiable, match=r"layer '0' \(Linear\): it has no form"):
        export_int16(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(NotCertifiable, match=r"MeanShift.*call eval\(\)"):
        export_int16(nn.Sequential(layers.MeanShift(2)).train())
    with pytest.raises(ConfigError, match="at most 32767"):
        export_int16(network, sublevels=200)
    large = layers.Dilation(2, 2)
    nn.init.constant_(large.weight, 130.0)
    with pytest.raises(NotSupportedError, match=r"layer '1.0' \(Dilation\).*33405 steps"):
        export_int16(nn.Sequential(nn.Flatten(), nn.Sequential(large)))
    deep = nn.Sequential(*(layers.Dilation(2, 2) for _ in range(5)))
    for part in deep:
        nn.init.constant_(part.weight, 30.0)
    with pytest.raises(NotSupportedError, match=r"layer '4' .* use fewer sublevels"):
        export_int16(deep)
    low = layers.Dilation(2, 2, mask=torch.tensor([[True, False], [False, True]]))
    nn.init.constant_(low.weight, -127.5)
    with pytest.raises(NotSupportedError, match="no place within 16 bits"):
        export_int16(low)


def test_weights_that_never_win_may_be_far_below_all_others() -> None:
    layer = layers.SignedDilation(3, 2)
    nn.init.constant_(layer.weight, -1e6)
    with torch.no_grad():
        layer.weight[:, 0] = 0.1
    images = torch.randint(0, 256, (9, 3))
    exported = export_int16(layer)
    assert torch.equal(exported(images), (images[:, :1] + 26).expand(-1, 2).to(torch.int16))


def test_images_and_radii_in_other_units_are_refused() -> None:
    network, images = build(0, 1)
    exported, x, labels = export_int16(network), images.float() / 255, torch.zeros(7, dtype=torch.long)
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        exported(images.float() + 2)
    with pytest.raises(DataError, match=r"must lie in \[0, 255\]"):
        exported(images + 2000)
    with pytest.raises(DataError, match="of a level away"):
        certified_margins(network, x * 0.9, labels, 0.1, "int16")
    with pytest.raises(ConfigError, match=r"whole number of grey levels; 0\.3 of the range is 77 levels"):
        certified_margins(network, images, labels, 0.3, "int16", clip=(0, 255))
    with pytest.raises(ConfigError, match=r"needs clip=\(0, 1\)"):
        certified_margins(network, x, labels, 0.1, "int16", clip=(-1, 1))
    with pytest.raises(ConfigError, match=r"0\.03137"):
        certified_margins(network, x, labels, 8, "int16")


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 7, 33), (17, 130, 64), (0, 4, 3)])
def test_products_of_integers_are_maxima_of_sums(shape: tuple[int, int, int]) -> None:
    samples, taps, outs = shape
    x, w = (torch.randint(-16000, 16000, size, dtype=torch.int16) for size in ((samples, taps), (taps, outs)))
    expected = (x.int()[:, :, None] + w.int()).amax(1).to(torch.int16)
    assert torch.equal(maxplus_int16(x, w), expected)
    with backends.use("eager"):
        assert torch.equal(maxplus_int16(x, w), expected)


def test_an_exported_network_is_saved_and_loaded_as_any_module(tmp_path) -> None:
    network, images = build(0, 1)
    exported, other = export_int16(network), export_int16(build(0, 1, scale=0.1)[0])
    torch.save(exported.state_dict(), tmp_path / "network.pt")
    other.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))
    assert torch.equal(other(images), exported(images))
    assert isinstance(exported, IntegerNetwork)
    assert math.isclose(exported.unit, 1 / 255)
