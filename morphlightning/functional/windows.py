"""Windowed operators on signals, images and volumes.

Textbook (Minkowski) convention: ``dilation2d(f, b)(p) = max_z f(p - z) + b(z)`` reflects the structuring function,
``erosion2d(f, b)(p) = min_z f(p + z) - b(z)`` does not; the two are adjoint. The origin of a window of size k is its
element k // 2 on each axis, as in scipy.ndimage. See docs/conventions.md, "The table".

All functions take x of shape (batch, channels, *space), or without the batch axis, and a structuring function b:

- an integer or a tuple: a flat box of that size;
- a boolean tensor: a flat footprint;
- a tensor (*window): one structuring function for all channels; -inf marks missing elements;
- a tensor (channels, *window): one for each channel;
- a tensor (out, in / groups, *window): grouped or full, as the weights of torch's convolutions.

They return (batch, out, *space) in the dtype of x, take the options of
:class:`morphlightning.functional.windowing.Windowing` as keywords (openings, closings and top-hats take dilation,
groups, border and value alone), and raise ShapeError, DtypeError or ConfigError with the axis or option at fault.
``derivative`` names the rule at ties. The laws of openings and closings need the neutral or the
circular border.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.windowing import (
    StructuringFunction,
    TiedOptions,
    Windowing,
    WindowOptions,
    apply_window,
    batched,
    weights,
)
from morphlightning.interfaces import Spec
from morphlightning.ops.policy import Policy
from morphlightning.pipeline import policy_of


def dilation(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """max_z f(p - z) + b(z) for any rank."""
    return apply_window(where, x, b, rank, 1, how, policy)


def erosion(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """min_z f(p + z) - b(z) for any rank."""
    return apply_window(where, x, b, rank, -1, how, policy)


def opening(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """Erosion, then the adjoint dilation."""
    w, how = _tied(where, x, b, rank, how)
    return dilation(where, erosion(where, x, w, rank, how, policy), _transposed(w, how.groups), rank, how, policy)


def closing(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """Dilation, then the adjoint erosion."""
    w, how = _tied(where, x, b, rank, how)
    return erosion(where, dilation(where, x, w, rank, how, policy), _transposed(w, how.groups), rank, how, policy)


def _tied(
    where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing
) -> tuple[StructuringFunction, Windowing]:
    """The weights and options of an operator with two stages of one window, which must give back what it is given.

    The size of a flat box stays a size, for which there are faster ways.
    """
    refused = [name for name in ("stride", "padding", "merge") if getattr(how, name) != getattr(Windowing, name)]
    if refused:
        raise ConfigError(
            f"{where} does not take {' or '.join(refused)}: both stages use one window and keep the image's size; "
            "compose dilation and erosion for anything else"
        )
    w, groups = weights(where, b, batched(where, x, rank), rank, how.groups)
    return w if isinstance(b, Tensor) else b, replace(how, groups=groups)


def _transposed(b: StructuringFunction, groups: int) -> StructuringFunction:
    return transposed(b, groups) if isinstance(b, Tensor) else b


def gradient(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """Dilation minus erosion."""
    return dilation(where, x, b, rank, how, policy) - erosion(where, x, b, rank, how, policy)


def white_tophat(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """What the opening removes."""
    return x - opening(where, x, b, rank, how, policy)


def black_tophat(where: str, x: Tensor, b: StructuringFunction, rank: int, how: Windowing, policy: Policy) -> Tensor:
    """What the closing fills."""
    return closing(where, x, b, rank, how, policy) - x


def transposed(w: Tensor, groups: int) -> Tensor:
    """(groups * out, in, *window) as (groups * in, out, *window): the weights of the adjoint operator."""
    back: Tensor = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return back


def dilation1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Dilation :math:`\max_z f(p - z) + b(z)` of signals."""
    return dilation("dilation1d", x, b, 1, Windowing(**options), policy_of(derivative))


def dilation2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Dilation :math:`\max_z f(p - z) + b(z)` of images."""
    return dilation("dilation2d", x, b, 2, Windowing(**options), policy_of(derivative))


def dilation3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Dilation :math:`\max_z f(p - z) + b(z)` of volumes."""
    return dilation("dilation3d", x, b, 3, Windowing(**options), policy_of(derivative))


def erosion1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Erosion :math:`\min_z f(p + z) - b(z)` of signals, the adjoint of :func:`dilation1d`."""
    return erosion("erosion1d", x, b, 1, Windowing(**options), policy_of(derivative))


def erosion2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Erosion :math:`\min_z f(p + z) - b(z)` of images, the adjoint of :func:`dilation2d`."""
    return erosion("erosion2d", x, b, 2, Windowing(**options), policy_of(derivative))


def erosion3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[WindowOptions]
) -> Tensor:
    r"""Erosion :math:`\min_z f(p + z) - b(z)` of volumes, the adjoint of :func:`dilation3d`."""
    return erosion("erosion3d", x, b, 3, Windowing(**options), policy_of(derivative))


def opening1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Opening of signals: erosion, then dilation by the same window; anti-extensive and idempotent."""
    return opening("opening1d", x, b, 1, Windowing(**options), policy_of(derivative))


def opening2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Opening of images: erosion, then dilation by the same window; anti-extensive and idempotent."""
    return opening("opening2d", x, b, 2, Windowing(**options), policy_of(derivative))


def opening3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Opening of volumes: erosion, then dilation by the same window; anti-extensive and idempotent."""
    return opening("opening3d", x, b, 3, Windowing(**options), policy_of(derivative))


def closing1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Closing of signals: dilation, then erosion by the same window; extensive and idempotent."""
    return closing("closing1d", x, b, 1, Windowing(**options), policy_of(derivative))


def closing2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Closing of images: dilation, then erosion by the same window; extensive and idempotent."""
    return closing("closing2d", x, b, 2, Windowing(**options), policy_of(derivative))


def closing3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Closing of volumes: dilation, then erosion by the same window; extensive and idempotent."""
    return closing("closing3d", x, b, 3, Windowing(**options), policy_of(derivative))


def gradient1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Morphological gradient of signals: dilation minus erosion."""
    return gradient("gradient1d", x, b, 1, Windowing(**options), policy_of(derivative))


def gradient2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Morphological gradient of images: dilation minus erosion."""
    return gradient("gradient2d", x, b, 2, Windowing(**options), policy_of(derivative))


def gradient3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Morphological gradient of volumes: dilation minus erosion."""
    return gradient("gradient3d", x, b, 3, Windowing(**options), policy_of(derivative))


def white_tophat1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """White top-hat of signals: x minus its opening, what is brighter and thinner than the window."""
    return white_tophat("white_tophat1d", x, b, 1, Windowing(**options), policy_of(derivative))


def white_tophat2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """White top-hat of images: x minus its opening, what is brighter and thinner than the window."""
    return white_tophat("white_tophat2d", x, b, 2, Windowing(**options), policy_of(derivative))


def white_tophat3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """White top-hat of volumes: x minus its opening, what is brighter and thinner than the window."""
    return white_tophat("white_tophat3d", x, b, 3, Windowing(**options), policy_of(derivative))


def black_tophat1d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Black top-hat of signals: closing of x minus x, what is darker and thinner than the window."""
    return black_tophat("black_tophat1d", x, b, 1, Windowing(**options), policy_of(derivative))


def black_tophat2d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Black top-hat of images: closing of x minus x, what is darker and thinner than the window."""
    return black_tophat("black_tophat2d", x, b, 2, Windowing(**options), policy_of(derivative))


def black_tophat3d(
    x: Tensor, b: StructuringFunction, *, derivative: Spec = "first", **options: Unpack[TiedOptions]
) -> Tensor:
    """Black top-hat of volumes: closing of x minus x, what is darker and thinner than the window."""
    return black_tophat("black_tophat3d", x, b, 3, Windowing(**options), policy_of(derivative))
