"""Does a module commute with a change of its inputs? For tests of layers and networks of one's own."""

from __future__ import annotations

from torch import Tensor, nn

from morphlightning.guarantees.stability import Change, defects, equivariances
from morphlightning.guarantees.stability.defects import check_change


def assert_equivariance(
    module: nn.Module, group: Change, images: Tensor, *, amount: float | None = None, tolerance: float | None = None
) -> None:
    r"""Fail unless :math:`f(Tx) = T f(x)` on these inputs, in evaluation mode.

    What is tested is what :class:`morphlightning.metrics.EquivarianceDefect` measures, of the module as a whole.

    Args:
        module: A layer or a network.
        group: The change T: shift, contrast, brightness, gain, sup or inf.
        images: Inputs (batch, ...); for shifts (batch, channels, *space) with two axes of space or more.
        amount: Of the change; None for the default of the metric.
        tolerance: How large the defect may be; None for what the module claims
            (:func:`morphlightning.guarantees.stability.equivariances`): exactly 0, or what rounding explains. Where the
            module claims nothing, 0.

    Raises:
        AssertionError: The defect is larger; the message has it.
        ConfigError: There is no such change or amount.

    Example:
        >>> import torch
        >>> from morphlightning.layers import Dilation2d
        >>> assert_equivariance(Dilation2d(1, 4, 3), "shift", torch.rand(2, 1, 16, 16))
    """
    kind, size = check_change("assert_equivariance", group, amount)
    found = defects(module, images, kind, size, per_layer=False).get("network")
    name = type(module).__name__
    shape = tuple(images.shape)
    assert found is not None, f"{name}: {group} is not to be measured on inputs of shape {shape}; take larger images"
    claimed = equivariances(module)
    if tolerance is None and claimed is not None and kind in claimed.bitwise | claimed.rounded:
        broken = bool(found.excess > 0)
    else:
        broken = not found.largest <= (tolerance or 0.0)
    assert not broken, f"{name} does not commute with {group}: a defect of {float(found.largest):.3g}"
