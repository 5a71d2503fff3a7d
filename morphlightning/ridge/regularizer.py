"""Ridge regularizers: sums of learned one-dimensional potentials of filtered images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.interfaces import Spline
from morphlightning.ridge.filters import BlockedFilters, FilterBank, Filters
from morphlightning.ridge.scaling import NoiseScaling
from morphlightning.splines import SplineTable

FEATURES_AT_ONCE = 2**22
"""At most about so many features exist at once where the gradient at one noise level is evaluated."""


@dataclass(frozen=True)
class Ridge:
    r"""A ridge regularizer at its present weights and at given noise levels.

    :math:`R(x) = \sum_{c,p} \alpha_c^{-2}\,\psi_c(\alpha_c (Wx)_{c,p})`, :math:`\psi_c' = \varphi_c` a linear spline.

    Attributes:
        filters: W.
        profile: The splines phi, one for all features or one each.
        scale: alpha, (N, features), or (1, features) for all images; None for 1.
    """

    filters: Filters | BlockedFilters
    profile: SplineTable
    scale: Tensor | None = None

    def features(self, x: Tensor) -> Tensor:
        """Scaled features alpha W x, (N, features, H', W')."""
        return self._times(self.filters(x))

    def grad(self, x: Tensor) -> Tensor:
        """The gradient W^T diag(1/alpha) phi(alpha W x), shape of x (N, in, H, W)."""
        return self.filters.adjoint(self._over(self.profile(self.features(x))))

    def energy(self, x: Tensor) -> Tensor:
        """R of each image, (N,)."""
        density = self.profile.potential(self.features(x))
        return self._over(self._over(density)).flatten(1).sum(1)

    def curvature(self, x: Tensor) -> Tensor:
        """The slopes phi'(alpha W x), (N, features, H', W'), from the right at knots."""
        return self.profile.slope(self.features(x))

    def lipschitz(self) -> Tensor:
        """The profile's largest absolute slope, a Lipschitz constant of the gradient where ||W|| <= 1; a scalar."""
        return self.profile.slopes.abs().max()

    def hessian_product(self, curvature: Tensor, v: Tensor) -> Tensor:
        """W^T diag(curvature) W v, the Hessian at the point that ``curvature`` is of; shape of v."""
        return self.filters.adjoint(curvature * self.filters(v))

    def detach(self) -> Ridge:
        """The same without a history."""
        scale = None if self.scale is None else self.scale.detach()
        return Ridge(self.filters.detach(), self.profile.detach(), scale)

    def prepared(self) -> Ridge:
        """The same for many evaluations: without history, on a grid of knots where that can be, laid out well."""
        ridge = self.detach()
        return Ridge(ridge.filters.channels_last(), ridge.profile.on_grid(), ridge.scale)

    @torch.no_grad()
    def grad_in_place(self, x: Tensor, scale: Tensor) -> Tensor:
        """As :meth:`grad` with other scales, without history, and with one tensor of features."""
        z = self.filters(x).mul_(scale[:, :, None, None])
        return self.filters.adjoint(self.profile(z, out=z).div_(scale[:, :, None, None]))

    def blocked(self, height: int, width: int) -> Ridge:
        """The same for images of that size, on blocks of pixels where they fit; see :class:`BlockedFilters`."""
        filters, scale = self.filters.blocked(height, width), self.scale
        if filters is self.filters:
            return self
        if scale is not None and isinstance(filters, BlockedFilters):
            scale = scale.repeat_interleave(filters.block**2, 1)
        return Ridge(filters, self.profile, scale)

    def folded(self) -> FoldedRidge:
        """The same gradient with one scale for all images folded into the filters: two passes less over features.

        Raises:
            ConfigError: Images have scales of their own.
        """
        analysis = synthesis = self.filters
        if self.scale is not None:
            if len(self.scale) != 1:
                raise ConfigError("Ridge.folded: images of several noise levels; fold the scales of one at a time")
            analysis, synthesis = analysis.scaled(self.scale[0]), synthesis.scaled(1 / self.scale[0])
        return FoldedRidge(analysis.channels_last(), synthesis.channels_last(), self.profile.on_grid())

    def _times(self, z: Tensor) -> Tensor:
        return z if self.scale is None else z * self.scale[:, :, None, None]

    def _over(self, z: Tensor) -> Tensor:
        return z if self.scale is None else z / self.scale[:, :, None, None]


@dataclass(frozen=True)
class FoldedRidge:
    """The gradient of a ridge regularizer for images of one noise level, for many evaluations."""

    analysis: Filters | BlockedFilters
    synthesis: Filters | BlockedFilters
    profile: SplineTable

    @torch.no_grad()
    def grad(self, x: Tensor) -> Tensor:
        """As of :class:`Ridge`, without history.

        Large images go strip by strip: features are sixty times an image, and tensors above some size are given back to
        the system and fetched anew each time.
        """
        if not isinstance(self.analysis, BlockedFilters) or self.analysis.pad:
            return self._part(x)
        halo, block = self.analysis.halo, self.analysis.block
        features = len(x) * len(self.analysis.weight) // block**2 * x.shape[-1]  # of a row of pixels
        rows = max(halo, FEATURES_AT_ONCE // max(features, 1) // block * block)
        if x.shape[2] <= rows + halo:
            return self._part(x)
        gradient = torch.zeros_like(x)
        for top in range(0, x.shape[2] - halo, rows):
            part = slice(top, min(top + rows + halo, x.shape[2]))
            gradient[:, :, part] += self._part(x[:, :, part])
        return gradient

    def _part(self, x: Tensor) -> Tensor:
        z = self.analysis(x)
        return self.synthesis.adjoint(self.profile(z, out=z))


class RidgeRegularizer(nn.Module):
    r"""A learned regularizer of images, :math:`R(x) = \sum_{c,p} \alpha_c^{-2}\,\psi_c(\alpha_c (Wx)_{c,p})`.

    W is a bank of normalized filters, :math:`\|W\| \le 1`, and :math:`\varphi_c = \psi_c'` a learned linear spline with
    slopes in :math:`[-\rho, L]`. Then R is rho-weakly convex and its gradient L-Lipschitz, whatever the scales: the
    Hessian is :math:`W^T \mathrm{diag}(\varphi_c'(\alpha_c W x)) W`. With rho = 0, R is convex; with rho <= 1 the
    denoising objective 1/2||x - y||^2 + R(x) is. Both constants are read off the splines' slopes, exactly.

    Args:
        filters: W.
        activation: phi, a module with the capability Spline: one spline for all features, or one for each.
        scaling: How the scales alpha depend on the noise level; None for alpha = 1.

    Raises:
        ConfigError: The activation is no spline.

    Source: Goujon et al., arXiv 2211.12461 (convex), 2308.10542 (weakly convex, scales).
    """

    def __init__(self, filters: FilterBank, activation: nn.Module, scaling: NoiseScaling | None = None) -> None:
        super().__init__()
        if not isinstance(activation, Spline):
            raise ConfigError(
                f"RidgeRegularizer: {type(activation).__name__} is no spline, whose slopes and potential are "
                "needed; take linear_spline or nonuniform_spline"
            )
        self.filters, self.activation, self.scaling = filters, activation, scaling

    def forward(self, sigma: Tensor | float | None = None) -> Ridge:
        """R at the present weights for noise levels (N,), or one number for all images; differentiable in the weights.

        Raises:
            ConfigError: The regularizer depends on the noise level, and none is given.
        """
        scale = None
        if self.scaling is not None:
            if sigma is None:
                raise ConfigError("RidgeRegularizer: it depends on the noise level, sigma, and none was given")
            level = torch.as_tensor(sigma).to(self.scaling.values).reshape(-1)
            scale = self.scaling(level)
        profile: SplineTable = self.activation.table()
        return Ridge(self.filters(), profile, scale)

    def grad(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """The gradient of R, shape of x (N, in, H, W); sigma is a number or (N,)."""
        self._check(x)
        return self(sigma).grad(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def gradient_at(self, sigma: Tensor | float | None = None) -> Callable[[Tensor], Tensor]:
        """The gradient at the present weights and one noise level, without history: for many evaluations."""
        ridge: Ridge = self(sigma)
        folded: dict[tuple[int, ...], FoldedRidge] = {}

        def gradient(x: Tensor) -> Tensor:
            size = tuple(x.shape[2:])
            if size not in folded:
                folded[size] = ridge.blocked(*size).folded()
            return folded[size].grad(x)

        return gradient

    def energy(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """R of each image, (N,)."""
        self._check(x)
        return self(sigma).energy(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def lipschitz(self) -> float:
        """A Lipschitz constant of the gradient: the largest absolute slope, since ||W|| <= 1."""
        return float(self._slopes().abs().max())

    @torch.no_grad()
    def weak_convexity(self) -> float:
        """The smallest rho >= 0, up to ||W||, for which the splines make R + rho/2 ||.||^2 convex."""
        return max(0.0, -float(self._slopes().min()))

    @property
    def certified(self) -> bool:
        """Whether the two constants are proved, which takes a proved bound of ||W||."""
        return self.filters.certified

    def _slopes(self) -> Tensor:
        table: SplineTable = self.activation.table()
        return table.slopes.double()

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.filters.channels[0]:
            raise ShapeError(
                f"RidgeRegularizer: x has shape {tuple(x.shape)}, expected (N, {self.filters.channels[0]}, H, W)"
            )
