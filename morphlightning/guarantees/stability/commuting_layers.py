"""What layers commute with: ours, and torch's.

A maximum of numbers commutes with every increasing function of them, and rounding is one. So maxima of x + w commute
with suprema, and with shifts, bit for bit; with brightness in exact arithmetic, where x + w + c are two sums; and with
contrast and gain where all weights are 0 or missing. Minima commute with infima.
"""

from __future__ import annotations

from torch import nn

from morphlightning import layers
from morphlightning.guarantees.stability.claims import Change, claims, register_equivariances
from morphlightning.interfaces import Equivariances
from morphlightning.layers import MorphLayer
from morphlightning.layers.families import RANKS, family
from morphlightning.layers.windows import WindowLayer

NOTHING = Equivariances()


# ------------------------------------------------------------------------------------------------------- morphological
def _flat(module: nn.Module) -> bool:
    """Whether all weights of its morphological layers are 0 or missing."""
    parts = [part for part in module.modules() if isinstance(part, MorphLayer)]
    return all(not part.weight[part.mask].any() for part in parts)


def _if_flat(module: nn.Module) -> tuple[Change, ...]:
    return ("contrast", "gain") if _flat(module) else ()


@register_equivariances(*family("Dilation", ranks=("",)))
def _dilation(module: nn.Module) -> Equivariances:
    return claims("sup", *_if_flat(module), rounded=("brightness",))


@register_equivariances(*family("Erosion", ranks=("",)))
def _erosion(module: nn.Module) -> Equivariances:
    return claims("inf", *_if_flat(module), rounded=("brightness",))


@register_equivariances(*family("Opening", "Closing", "SupOfErosions", "DilationErosion", ranks=("",)))
def _increasing(module: nn.Module) -> Equivariances:
    return claims(*_if_flat(module), rounded=("brightness",))


@register_equivariances(*family("SoftDilation", "SoftErosion", ranks=("",)))
def _soft(module: nn.Module) -> Equivariances:
    return claims(rounded=("brightness",))


@register_equivariances(*family("Dilation", "MorphPool", ranks=RANKS))
def _windowed_dilation(module: WindowLayer) -> Equivariances:
    return _windowed(module, "sup")


@register_equivariances(*family("Erosion", ranks=RANKS))
def _windowed_erosion(module: WindowLayer) -> Equivariances:
    return _windowed(module, "inf")


@register_equivariances(*family("DilationErosion", "SupOfErosions", ranks=RANKS))
def _windowed_composite(module: nn.Module) -> Equivariances:
    part = next(part for part in module.modules() if isinstance(part, WindowLayer))
    return _windowed(part, flat=_flat(module))


@register_equivariances(*family("SoftDilation", "SoftErosion", ranks=RANKS))
def _soft_window(module: WindowLayer) -> Equivariances:
    found = _windowed(module, flat=False)
    return Equivariances(frozenset(), found.bitwise | found.rounded, found.reach, found.stride)


@register_equivariances(*family("Opening", "Closing", ranks=RANKS))
def _tied(module: WindowLayer) -> Equivariances:
    return _windowed(module, stages=2)


@register_equivariances(*family("Gradient", "TopHat", ranks=RANKS))
def _difference(module: WindowLayer) -> Equivariances:
    found = _windowed(module, flat=False, stages=2)
    return claims("shift", rounded=("gain",) if _flat(module) else (), reach=found.reach)


@register_equivariances(*family("Reconstruction", ranks=RANKS))
def _reconstruction(module: nn.Module) -> Equivariances:
    return _increasing(module)  # type: ignore[no-any-return]  # of shifts nothing: what is near the border may flow in


def _windowed(module: WindowLayer, *lattice: Change, flat: bool | None = None, stages: int = 1) -> Equivariances:
    """Of maxima or minima over windows, whose border reaches ``stages`` times the padding into the image."""
    if getattr(module, "return_provenance", False):
        return NOTHING
    how = module.windowing
    window = how.window(module.kernel_size, how.groups, reflected=False)
    around = how.border == "circular" and how.padding == "same" and set(window.stride) == {1}
    pads = tuple(stages * max(pad) for pad in zip(window.before, window.after, strict=True))
    flat = _flat(module) if flat is None else flat
    outside = how.border == "constant"  # values that no change of the image changes
    if how.merge == "sum" and module.weight.shape[1] > 1:
        found = claims(rounded=("shift", "gain") if flat and not outside else ("shift",))
    elif outside:
        found = claims("shift", *lattice)
    else:
        found = claims("shift", *lattice, *(("contrast", "gain") if flat else ()), rounded=("brightness",))
    return found._replace(reach=None if around else pads, stride=window.stride)


@register_equivariances(layers.Shift)
def _shift(module: nn.Module) -> Equivariances:
    return claims("shift", "sup", "inf", rounded=("brightness",))


@register_equivariances(layers.MeanShift)
def _mean_shift(module: nn.Module) -> Equivariances:
    return NOTHING if module.training else claims("sup", "inf", rounded=("brightness",))


# --------------------------------------------------------------------------------------------------------------- torch
@register_equivariances(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _identity(module: nn.Module) -> Equivariances:
    if module.training and not isinstance(module, nn.Identity):
        return NOTHING
    return claims("shift", "contrast", "brightness", "gain", "sup", "inf")


@register_equivariances(nn.Flatten, nn.Unflatten)
def _reshaped(module: nn.Module) -> Equivariances:
    return claims("contrast", "brightness", "gain", "sup", "inf")


@register_equivariances(nn.ReLU)
def _relu(module: nn.Module) -> Equivariances:
    return claims("shift", "gain", "sup", "inf")


@register_equivariances(nn.LeakyReLU)
def _leaky_relu(module: nn.LeakyReLU) -> Equivariances:
    lattice: tuple[Change, ...] = ("sup", "inf") if module.negative_slope >= 0 else ()
    return claims("shift", *lattice, rounded=("gain",))


@register_equivariances(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish)
def _pointwise(module: nn.Module) -> Equivariances:
    return claims(rounded=("shift",))  # lanes of a vector unit and the rest round in ways of their own


@register_equivariances(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _max_pool(module: nn.MaxPool2d) -> Equivariances:
    if module.return_indices:
        return NOTHING
    step = module.kernel_size if module.stride is None else module.stride
    found = claims("contrast", "brightness", "gain", "sup")
    if module.ceil_mode:
        return found
    return found._replace(bitwise=found.bitwise | {"shift"}, reach=module.padding, stride=step)


@register_equivariances(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
def _adaptive_max_pool(module: nn.AdaptiveMaxPool2d) -> Equivariances:
    if module.return_indices:
        return NOTHING
    size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,)
    to_one: tuple[Change, ...] = ("shift",) if set(size) == {1} else ()
    return claims("contrast", "brightness", "gain", "sup", *to_one)


@register_equivariances(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average_pool(module: nn.AvgPool2d) -> Equivariances:
    if module.ceil_mode or getattr(module, "divisor_override", None):
        return claims(rounded=("gain",))
    pads = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    bright: tuple[Change, ...] = ("brightness",) if not any(pads) or not module.count_include_pad else ()
    return claims(rounded=("shift", "gain", *bright), reach=module.padding, stride=module.stride)


@register_equivariances(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: nn.Conv2d) -> Equivariances:
    around = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    pads: tuple[int, ...] = (0,) * len(around) if isinstance(module.padding, str) else module.padding
    if module.padding == "same":
        pads = tuple(around)
    whole = module.padding == "same" or [2 * pad for pad in pads] == around  # the output is as large as the input
    reach = None if module.padding_mode == "circular" and whole and set(module.stride) == {1} else pads
    gain: tuple[Change, ...] = ("gain",) if module.bias is None else ()
    return claims(rounded=("shift", *gain), reach=reach, stride=module.stride)


@register_equivariances(nn.Linear)
def _linear(module: nn.Linear) -> Equivariances:
    return claims(rounded=("gain",)) if module.bias is None else NOTHING


@register_equivariances(nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: nn.BatchNorm2d) -> Equivariances:
    return NOTHING if module.training or not module.track_running_stats else claims(rounded=("shift",))
