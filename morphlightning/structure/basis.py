"""The minimal basis of a supremum of erosions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.layers import Erosion, SupOfErosions, SupOfErosions1d, SupOfErosions2d, SupOfErosions3d
from morphlightning.layers.windows import WindowLayer
from morphlightning.lipschitz import lipschitz_spec
from morphlightning.structure.chains import select

SUPREMA = (SupOfErosions, SupOfErosions1d, SupOfErosions2d, SupOfErosions3d)


class ErosionBasis(nn.Module):
    r"""Supremum of erosions with a number of terms of its own for each output: :math:`y_i = \max_{m \in T_i} e_m(x)`.

    The erosions e are the outputs of ``erosion``; the first ``terms[0]`` of them are the terms of output 0, the next
    ``terms[1]`` those of output 1, and so on.

    Args:
        erosion: An Erosion, or a windowed one: (..., in_features) or (batch, in_channels, *space).
        terms: Number of terms of each output, each >= 1.

    Raises:
        ConfigError: The terms are not as many as the erosions.
    """

    rows: Tensor

    def __init__(self, erosion: Erosion | WindowLayer, terms: tuple[int, ...]) -> None:
        super().__init__()
        if min(terms, default=0) < 1 or sum(terms) != len(erosion.weight):
            raise ConfigError(
                f"ErosionBasis: terms={terms} for {len(erosion.weight)} erosions; expected positive integers that add "
                "up to their number"
            )
        self.erosion, self.terms = erosion, tuple(terms)
        self._axis = -erosion.rank - 1 if isinstance(erosion, WindowLayer) else -1
        # a table of equal rows: where an output has fewer terms its last one is repeated, which changes no maximum
        last = torch.tensor(terms).cumsum(0)[:, None] - 1
        first = last - torch.tensor(terms)[:, None] + 1
        self.register_buffer("rows", torch.minimum(first + torch.arange(max(terms)), last), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of the erosions of each output; the first of equal ones."""
        terms = self.erosion(x).index_select(self._axis, self.rows.flatten())
        y: Tensor = terms.unflatten(self._axis, self.rows.shape).max(self._axis).values
        return y

    def lipschitz_spec(self) -> LipschitzSpec:
        """That of its erosions: a maximum moves no further than what it is taken of."""
        return lipschitz_spec(self.erosion, "linf")

    def extra_repr(self) -> str:
        """Terms of each output."""
        return f"terms={self.terms}"


def minimal_basis(layer: nn.Module) -> ErosionBasis:
    r"""The same supremum of erosions without the terms that never matter.

    Erosion by b is below erosion by b' for every input if and only if b >= b' in every entry, so each output needs only
    its minimal structuring functions, and of equal ones the first. A missing weight counts as -inf, below everything.
    The output is the same for every input, bit for bit (where ``merge="sum"`` adds channels: for every finite one),
    and with ``merge="max"`` no smaller set of terms computes it.

    Args:
        layer: A SupOfErosions, SupOfErosions1d, 2d or 3d; it is not changed.

    Returns:
        A module of the kept erosions. With ``groups > 1`` each group keeps as many as the largest needs; the surplus
        repeats terms.

    Raises:
        ConfigError: The layer is something else.

    Source: the basis of Matheron's theorem (Maragos, 1985); derived in docs/structure.md, "Suprema of erosions".
    """
    if not isinstance(layer, SUPREMA):
        raise ConfigError(
            f"minimal_basis: {type(layer).__name__} is not a supremum of erosions; expected a SupOfErosions, "
            "SupOfErosions1d, 2d or 3d (export takes whole networks)"
        )
    erosion = layer.erosion
    weights = erosion.effective_weight.detach().flatten(1).unflatten(0, (-1, layer.terms))
    kept = [minimal(b) + i * layer.terms for i, b in enumerate(weights)]
    groups = erosion.windowing.groups if isinstance(erosion, WindowLayer) else 1
    kept = _level(kept, groups)
    return ErosionBasis(select(erosion, 0, torch.cat(kept)), tuple(map(len, kept)))


def minimal(b: Tensor) -> Tensor:
    """Indices of the minimal rows of b (terms, n) in the pointwise order; of equal rows the first."""
    above = torch.stack([(row >= b).all(1) for row in b])  # above[m, l]: row m lies above row l, or equals it
    earlier = torch.ones_like(above).tril(-1)
    return (~(above & (~above.T | earlier)).any(1)).nonzero()[:, 0]


def _level(kept: list[Tensor], groups: int) -> list[Tensor]:
    """Give each group of outputs as many rows as the largest has, by repeating the last row of the last output."""
    size = len(kept) // groups
    sums = [sum(map(len, kept[start : start + size])) for start in range(0, len(kept), size)]
    for group, rows in enumerate(sums):
        last = (group + 1) * size - 1
        kept[last] = torch.cat([kept[last], kept[last][-1:].expand(max(sums) - rows)])
    return kept
