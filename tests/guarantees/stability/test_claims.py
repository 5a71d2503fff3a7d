"""What layers claim to commute with, they commute with: exactly, and a false claim is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import layers
from morphlightning.errors import ConfigError
from morphlightning.functional import dilation2d
from morphlightning.guarantees.stability import Deformation, affine, change, defects, deform, equivariances
from morphlightning.guarantees.stability.defects import AMOUNTS, check_change
from morphlightning.interfaces import Equivariances

GROUPS = tuple(AMOUNTS)
FLAT = {"initializer": {"name": "flat"}}


def images(channels: int = 2, dtype: torch.dtype = torch.float32, size: tuple[int, int] = (13, 12)) -> Tensor:
    return torch.randn(4, channels, *size, generator=torch.Generator().manual_seed(0)).to(dtype)


WINDOWED: list[nn.Module] = [
    layers.Dilation2d(2, 3, 5),
    layers.Erosion2d(2, 3, (2, 3)),
    layers.Dilation2d(2, kernel_size=3, border="circular"),
    layers.Dilation2d(2, 3, 3, border="reflect"),
    layers.Erosion2d(2, 3, 3, border="replicate", dilation=2),
    layers.Dilation2d(2, 3, 3, border="constant", value=0.3),
    layers.Dilation2d(2, 3, 3, stride=2),
    layers.Dilation2d(2, 3, 3, padding="valid"),
    layers.Dilation2d(2, 3, 3, padding=2, stride=3),
    layers.Dilation2d(2, 3, 3, merge="sum"),
    layers.Dilation2d(2, 3, 3, merge="sum", border="constant", **FLAT),
    layers.Dilation2d(2, 3, 3, **FLAT),
    layers.Erosion2d(2, 3, 3, **FLAT),
    layers.Opening2d(2, 3),
    layers.Opening2d(2, 3, **FLAT),
    layers.Closing2d(2, 3),
    layers.Gradient2d(2, 3),
    layers.Gradient2d(2, 3, **FLAT),
    layers.TopHat2d(2, 3),
    layers.Reconstruction2d(2, 3, **FLAT),
    layers.MorphPool2d(2, 3, 2, 1),
    layers.DilationErosion2d(2, 3, 3),
    layers.DilationErosion2d(2, 3, 3, **FLAT),
    layers.SupOfErosions2d(2, 3, 3, stride=2),
    layers.SoftDilation2d(2, 3, 3, beta=5.0),
    layers.SoftErosion2d(2, 3, 3, beta=5.0),
    nn.Conv2d(2, 3, 5, padding=2),
    nn.Conv2d(2, 3, 3, stride=2, bias=False),
    nn.Conv2d(2, 3, (3, 5), padding="same", padding_mode="circular"),
    nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2),
    nn.Conv2d(2, 3, 3, padding="valid", padding_mode="circular"),
    nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="reflect"),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 1, 1),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    nn.AdaptiveMaxPool2d(1),
    nn.AdaptiveMaxPool2d((3, 4)),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.1),
    nn.Tanh(),
    nn.GELU(),
    nn.BatchNorm2d(2).eval(),
    nn.Identity(),
    nn.Dropout(0.5).eval(),
    layers.Shift(0.5),
]  # fmt: skip

DENSE: list[nn.Module] = [
    layers.Dilation(12, 7),
    layers.Dilation(12, 7, **FLAT),
    layers.Erosion(12, 7),
    layers.Erosion(12, 7, **FLAT),
    layers.Opening(12, 7),
    layers.Closing(12, 7, **FLAT),
    layers.SupOfErosions(12, 7),
    layers.DilationErosion(12, 7),
    layers.SoftDilation(12, 7, beta=3.0),
    layers.SoftErosion(12, 7, beta=3.0),
    layers.MeanShift(12).eval(),
    nn.Linear(12, 5, bias=False),
    nn.Sequential(layers.DilationErosion(12, 7), layers.MeanShift(14), layers.Erosion(14, 3)),
]


@pytest.mark.parametrize("module", WINDOWED, ids=lambda m: repr(m)[:60])
def test_layers_of_images_commute_with_what_they_claim(module: nn.Module) -> None:
    """GEO-1: bit for bit where that is claimed, in float32 as they are used."""
    _check(module, images(), GROUPS)
    found = defects(module, images(), "shift", -1, per_layer=False)
    assert found["network"].excess <= 0


@pytest.mark.parametrize("module", DENSE, ids=lambda m: repr(m)[:60])
def test_dense_layers_commute_with_what_they_claim(module: nn.Module) -> None:
    """GEO-1"""
    _check(module, images(1)[:, 0, 0], [group for group in GROUPS if group != "shift"])


def _check(module: nn.Module, x: Tensor, groups: Sequence[Any]) -> None:
    claimed = equivariances(module)
    assert claimed is not None
    for group in groups:
        defect = defects(module, x, group, 2 if group == "shift" else AMOUNTS[group], per_layer=False)["network"]
        if group in claimed.bitwise:
            assert defect.largest == 0, (group, defect)
        if group in claimed.rounded:
            assert defect.largest <= 64 * torch.finfo(x.dtype).eps * x.abs().max(), (group, defect)
        assert defect.excess <= 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_claims_hold_in_other_precisions(dtype: torch.dtype) -> None:
    for module in (layers.Dilation2d(2, 3, 3), layers.Erosion2d(2, 3, 3, **FLAT), nn.MaxPool2d(2)):
        _check(module.to(dtype), images(dtype=dtype), GROUPS)


def test_every_kind_of_morphological_layer_is_in_the_tests_above() -> None:
    from morphlightning.guarantees.stability.claims import _RULES

    seen = {type(module) for module in [*WINDOWED, *DENSE]}
    ours = {kind for kind in _RULES if kind.__module__.startswith("morphlightning.")}
    missing = {kind.__name__ for kind in ours - seen if not kind.__name__.endswith(("1d", "3d"))}
    assert not missing


def test_claims_say_no_more_than_is_true() -> None:
    """Changes with which a layer does not commute are not claimed: measured, they are far from 0."""
    x = images()
    torch.manual_seed(0)
    false: list[tuple[nn.Module, tuple[Any, ...]]] = [
        (layers.Dilation2d(2, 3, 3, initializer={"name": "upper", "spread": 2.0}), ("contrast", "gain", "inf")),
        (layers.Erosion2d(2, 3, 3, initializer={"name": "upper", "spread": 2.0}), ("contrast", "gain", "sup")),
        (nn.Conv2d(2, 3, 3), ("contrast", "brightness", "gain", "sup")),
        (nn.AvgPool2d(3), ("contrast", "sup")),
        (nn.ReLU(), ("brightness",)),
    ]
    for module, groups in false:
        for group in groups:
            claimed = equivariances(module)
            assert claimed is not None
            assert group not in claimed.bitwise | claimed.rounded
            assert defects(module, x, group, AMOUNTS[group])["network"].largest > 0.01, (module, group)


def test_dilations_do_not_commute_with_shifts_by_half_a_pixel_but_convolutions_do() -> None:
    """GEO-1: morphological equivariance is exact on the grid alone."""
    x = images(1, torch.float64)
    half = Deformation(torch.tensor([0.5, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, *x.shape[2:]))
    inner = (..., slice(3, -3), slice(3, -3))
    convolution = nn.Conv2d(1, 1, 5, padding=2, bias=False).double()
    with torch.no_grad():
        linear = convolution(deform(x, half)) - deform(convolution(x), half)
    morphological = dilation2d(deform(x, half), 5) - deform(dilation2d(x, 5), half)
    assert linear[inner].abs().max() < 1e-14
    assert morphological[inner].abs().max() > 0.1


def test_the_global_maximum_is_invariant_to_bijections_of_the_pixels() -> None:
    """GEO-1: of the image; and the maximum of a dilation is that of the image plus that of the window."""
    x = images()
    window = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(13 * 12, generator=torch.Generator().manual_seed(2))
    warped = x.flatten(2)[..., order].view_as(x)
    assert torch.equal(nn.AdaptiveMaxPool2d(1)(warped), nn.AdaptiveMaxPool2d(1)(x))
    dilated = dilation2d(x, window, border="circular").amax((2, 3))
    torch.testing.assert_close(dilated, x.amax((2, 3)) + window.max())
    turned = deform(x[..., :12, :], affine(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) * 0.49, (12, 12)))
    assert (turned.amax((2, 3)) <= x.amax((2, 3))).all()


class Liar(nn.Module):
    """Says that it commutes with shifts; its outputs depend on where pixels are."""

    def equivariances(self) -> Equivariances:
        return Equivariances(frozenset({"shift"}), frozenset({"brightness"}))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0, 1, x.shape[-1])


def test_a_false_claim_has_an_excess() -> None:
    found = defects(nn.Sequential(nn.ReLU(), Liar()), images(), "shift", 1)
    assert list(found) == ["0", "1", "network"]
    assert found["0"].excess <= 0
    assert found["1"].excess == found["1"].largest > 0
    assert found["network"].excess == -torch.inf, "nothing is claimed of the whole"
    assert defects(Liar(), images(), "brightness", 0.25)["network"].excess > 0


def test_what_is_not_a_number_is_no_agreement() -> None:
    class Broken(nn.Module):
        equivariances = Liar.equivariances

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.nan

    assert defects(Broken(), images(), "shift", 1)["network"].excess == torch.inf


def test_a_subclass_with_another_forward_claims_nothing() -> None:
    class Other(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).cumsum(-1)

    assert equivariances(Other(2)) is None
    assert equivariances(nn.Sequential(nn.ReLU(), Other(2))) is None
    kept = type("Kept", (nn.MaxPool2d,), {})(2)
    assert kept.forward.__func__ is nn.MaxPool2d.forward
    assert equivariances(kept) == equivariances(nn.MaxPool2d(2))


def test_sequences_commute_with_what_all_of_their_layers_commute_with() -> None:
    network = nn.Sequential(
        layers.Dilation2d(1, 2, 3), nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), layers.Erosion(12, 3)
    )
    assert equivariances(network) == Equivariances(frozenset(), frozenset({"brightness"}))
    assert equivariances(nn.Sequential()) is None


def test_layers_are_measured_on_their_own_inputs_and_left_as_they_were() -> None:
    """The defect of a layer is not that of the layers before it; modes, states and gradients stay."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2)).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images(1)
    kept = x.clone()
    found = defects(network, x, "brightness", 0.25)
    assert list(found) == ["0", "1", "2", "3", "network"]
    assert found["3"].largest == 0 < found["2"].largest
    assert torch.equal(x, kept)
    assert [module.training for module in network] == [True, False, True, True]
    assert not network[0]._forward_pre_hooks
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in network.parameters())


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    pool = nn.MaxPool2d(2)
    twice = defects(nn.Sequential(pool, pool), images(), "gain", 1.5)
    assert twice["0"].numbers == 4 * 2 * (6 * 6 + 3 * 3)


def test_changes() -> None:
    x = torch.tensor([[-4.0, 0.25], [9.0, -1.0]])
    assert change(x, "contrast", 0.5).tolist() == [[-2.0, 0.5], [3.0, -1.0]]
    assert change(x, "sup", 0).tolist() == [[9.0, 0.25], [9.0, 0.25]]
    assert change(x, "inf", 0).tolist() == [[-4.0, -1.0], [-4.0, -1.0]]
    assert torch.equal(change(x, "shift", 1), x)
    assert change(torch.arange(4.0).view(1, 1, 2, 2), "shift", 1).flatten().tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("kind", "amount", "message"),
    [
        ("rotation", None, "group must be one of shift, contrast, brightness, gain, sup, inf, got 'rotation'"),
        ("contrast", 2.0, "takes no amount"),
        ("shift", 0.5, "whole pixels"),
        ("gain", -1.0, "gain > 0"),
    ],
)
def test_bad_changes_are_refused(kind: str, amount: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_change("test", kind, amount)
