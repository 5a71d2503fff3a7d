"""Couplings: some numbers of a point stay, and say which monotone spline each of the others passes through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.flows.base import Bijection, Composition, in_own_dtype
from morphlightning.flows.conditioner import Conditioner
from morphlightning.flows.elementwise import Normalization
from morphlightning.flows.monotone import MonotoneSpline
from morphlightning.interfaces import Spec


class Coupling(Bijection):
    r"""The numbers at ``kept`` stay, each other one becomes :math:`f_d(x_d; h(x_{kept}))` with f_d increasing.

    The Jacobian is triangular: :math:`\log |\det| = \sum_d \log f_d'(x_d)`. The inverse is as cheap as the map.

    Args:
        dim: Numbers of a point, at least 2.
        kept: Positions of the numbers that stay; some, but not all.
        conditioner: h, a module from (N, len(kept)) to (N, (dim - len(kept)) * spline.count).
        spline: Makes the functions f of what the conditioner gives.

    Raises:
        ConfigError: ``kept`` are no such positions.

    Source: Dinh et al., arXiv 1605.08803; Müller et al., arXiv 1808.03856.
    """

    kept: Tensor
    moved: Tensor
    order: Tensor

    def __init__(self, dim: int, kept: Sequence[int], conditioner: nn.Module, spline: MonotoneSpline) -> None:
        super().__init__(dim)
        positions = sorted(set(kept))
        if not 0 < len(positions) < dim or positions[0] < 0 or positions[-1] >= dim or len(positions) < len(kept):
            raise ConfigError(
                f"Coupling: kept={list(kept)}, expected some of the positions 0 to {dim - 1}, each once, and not all; "
                "points of one number need ElementwiseSpline"
            )
        moved = [d for d in range(dim) if d not in positions]
        self.register_buffer("kept", torch.tensor(positions))
        self.register_buffer("moved", torch.tensor(moved))
        self.register_buffer("order", torch.tensor(positions + moved).argsort())
        self.conditioner, self.spline = conditioner, spline

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,)."""
        self.check(x)
        kept = x[:, self.kept]
        moved, log_slopes = self.spline(self._free(kept))(x[:, self.moved])
        return torch.cat([kept, moved], 1)[:, self.order], log_slopes.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z."""
        self.check(z)
        kept = z[:, self.kept]
        moved = self.spline(self._free(kept)).inverse(z[:, self.moved])
        return torch.cat([kept, moved], 1)[:, self.order]

    def _free(self, kept: Tensor) -> Tensor:
        free = in_own_dtype(self.conditioner, kept)
        expected = (len(kept), len(self.moved) * self.spline.count)
        if free.shape != expected:
            raise ShapeError(
                f"Coupling: the conditioner gives {tuple(free.shape)}, expected {expected}: {self.spline.count} "
                f"numbers for each of the {len(self.moved)} positions that move"
            )
        return free.view(len(kept), len(self.moved), self.spline.count)


def coupling_flow(
    dim: int,
    layers: int = 8,
    hidden: Sequence[int] = (64, 64),
    spline: MonotoneSpline | None = None,
    activation: Spec = "relu",
    seed: int = 0,
) -> Composition:
    """Couplings that keep one half of the positions and the other half by turns, each behind a normalization.

    With more than two positions the halves are drawn anew for each pair of couplings.

    Args:
        dim: Numbers of a point, at least 2.
        layers: Number of couplings.
        hidden: Widths of the conditioners' hidden layers.
        spline: The functions of the couplings; None for ``MonotoneSpline()``.
        activation: Component of kind activations, of the conditioners.
        seed: Of the halves.

    Raises:
        ConfigError: A setting is out of its range.
    """
    spline = MonotoneSpline() if spline is None else spline
    if dim < 2 or layers < 1:
        raise ConfigError(f"coupling_flow: dim={dim}, layers={layers}, expected at least 2 positions and 1 layer")
    generator = torch.Generator().manual_seed(seed)
    steps: list[Bijection] = []
    for layer in range(layers):
        if layer % 2 == 0:
            positions = torch.randperm(dim, generator=generator).tolist() if dim > 2 else [0, 1]
        half = positions[: dim // 2] if layer % 2 == 0 else positions[dim // 2 :]
        conditioner = Conditioner(len(half), (dim - len(half)) * spline.count, hidden, activation)
        steps += [Normalization(dim), Coupling(dim, half, conditioner, spline)]
    return Composition(*steps, Normalization(dim))
