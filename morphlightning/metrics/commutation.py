"""How well a part-based code commutes with dilation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from morphlightning.errors import ShapeError
from morphlightning.functional import dilation2d
from morphlightning.functional.windowing import StructuringFunction


class DilationCommutation(Metric):
    r"""Error of dilating the atoms of a part-based code in place of the image, relative to the dilated image.

    A part-based code writes an image as :math:`x_n \approx \sum_k c_{nk} a_k` with non-negative, sparse codes c and
    atoms a. If the active parts lie far enough apart, the dilation by a window is the sum of the dilated parts. With
    :math:`y_n = \delta(x_n)`, N images of P values each (channels times pixels) and the mean
    :math:`\bar y = \frac{1}{NP} \sum_{n,p} y_n(p)` over all of them,

    .. math::

        D = \frac{\sum_{n,p} \bigl(y_n(p) - \sum_k c_{nk}\, \delta(a_k)(p)\bigr)^2}{\sum_{n,p} (y_n(p) - \bar y)^2}.

    D is 0 where code and dilation commute and 1 where the sum of dilated atoms is no better than the constant
    :math:`\bar y`; lower is better, and it has no upper bound. It has no unit: scaling the images and the code by one
    factor leaves it unchanged. Of dilated images that are all constant, D is 0 without an error and inf with one.

    With the original images D includes the error of reconstruction; with the reconstructions it is the failure to
    commute alone.

    The dilation is ``morphlightning.functional.dilation2d``, channel by channel, with the neutral border.

    Args:
        window: The structuring function: an integer or a pair for a flat box, a boolean tensor for a flat footprint, or
            what else ``dilation2d`` takes.
        **kwargs: Options of ``torchmetrics.Metric``.

    Source: the approximation of a dilation by dilated atoms, and the idea to measure its error, are those of Ponchon et
    al., "Part-based approximations for morphological operators using asymmetric auto-encoders", arXiv 1904.00763; the
    division by the variance is ours.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    error: Tensor
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, window: StructuringFunction = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window = window
        for state in ("error", "total", "squares"):
            self.add_state(state, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, code: Tensor, atoms: Tensor, images: Tensor) -> None:
        """Add a batch.

        Args:
            code: Codes c, (N, K).
            atoms: Atoms a, (K, C, H, W).
            images: Originals or reconstructions x, (N, C, H, W).

        Raises:
            ShapeError: The shapes do not fit together.
        """
        _check_shapes(code, atoms, images)
        code, atoms, images = _full(code), _full(atoms), _full(images)
        window = self.window.to(images.device) if isinstance(self.window, Tensor) else self.window
        with torch.autocast(images.device.type, enabled=False):
            dilated = dilation2d(images, window)
            parts = (code @ dilation2d(atoms, window).flatten(1)).view_as(dilated)
            # not in place: a batch in double precision makes the sums double
            self.error = self.error + (dilated - parts).square().sum()
            self.total = self.total + dilated.sum()
            self.squares = self.squares + dilated.square().sum()
        self.count += dilated.numel()

    def compute(self) -> Tensor:
        """D over all batches, a scalar."""
        spread = (self.squares - self.total.square() / self.count).clamp_min(0)
        return torch.where(self.error == 0, torch.zeros_like(spread), self.error / spread)


def _check_shapes(code: Tensor, atoms: Tensor, images: Tensor) -> None:
    shapes = f"code {tuple(code.shape)}, atoms {tuple(atoms.shape)}, images {tuple(images.shape)}"
    expected = "expected code (N, K), atoms (K, C, H, W), images (N, C, H, W)"
    if (code.ndim, atoms.ndim, images.ndim) != (2, 4, 4):
        raise ShapeError(f"DilationCommutation: {shapes}; {expected}; reshape decoder weights to images")
    if code.shape[0] != images.shape[0]:
        raise ShapeError(f"DilationCommutation: axis 0 of code and images differ: {shapes}; {expected}")
    if code.shape[1] != atoms.shape[0]:
        raise ShapeError(f"DilationCommutation: axis 1 of code and axis 0 of atoms differ: {shapes}; {expected}")
    if atoms.shape[1:] != images.shape[1:]:
        raise ShapeError(f"DilationCommutation: axes 1 to 3 of atoms and images differ: {shapes}; {expected}")


def _full(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype == torch.float64 else x.float()
