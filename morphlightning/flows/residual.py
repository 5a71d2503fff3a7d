"""Residual flows: x plus a contraction of x, inverted by iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.flows.base import Bijection, Composition, in_own_dtype
from morphlightning.flows.elementwise import Normalization
from morphlightning.flows.smooth import QuadraticSpline
from morphlightning.interfaces import LipschitzDeclared, Spec
from morphlightning.lipschitz import LipschitzNetwork

LogDet = Literal["exact", "series", "roulette"]
LOG_DETS: tuple[LogDet, ...] = ("exact", "series", "roulette")


class InvertibleResidual(Bijection):
    r""":math:`z = x + c\,g(x)` with :math:`\operatorname{Lip}(g) \le 1` certified and c < 1, hence invertible.

    **Inverse**: :math:`x_{k+1} = z - c\,g(x_k)` from :math:`x_0 = z`. The error after k steps is at most
    :math:`c^k/(1-c)\,|x_1 - x_0|`, and at most :math:`c/(1-c)\,|x_k - x_{k-1}|`; iteration ends when the latter is
    below ``tolerance`` (times |z| where that is above 1), or nothing but rounding is left.

    **Log-determinant**: ``"exact"`` takes the determinant of the Jacobian, in dim backward passes. The others estimate
    :math:`\sum_k (-1)^{k+1} \operatorname{tr}(J^k)/k` by one random vector of signs. ``"series"`` stops after
    ``terms`` terms, with a bias of at most ``truncation_bound``; ``"roulette"`` goes on after them with probability
    1/2 each time and weighs the terms so that there is no bias. Evaluation (``module.eval()``) of up to
    ``exact_dim`` numbers is always exact.

    Args:
        dim: Numbers of a point.
        branch: g, from (N, dim) to (N, dim), which declares that its Lipschitz constant in the 2-norm is 1 at most,
            such as ``morphlightning.lipschitz.LipschitzNetwork``.
        contraction: c, in (0, 1).
        log_det: See above.
        terms: See above.
        tolerance: Of the inverse.

    Attributes:
        exact_dim: See above.

    Raises:
        ConfigError: A setting is out of its range.
        NotSupportedError: The branch declares no such constant.

    Source: Behrmann et al., arXiv 1811.00995; Chen et al., arXiv 1906.02735.
    """

    exact_dim = 64

    def __init__(
        self,
        dim: int,
        branch: nn.Module,
        contraction: float = 0.9,
        log_det: LogDet = "exact",
        terms: int = 8,
        tolerance: float = 1e-7,
    ) -> None:
        super().__init__(dim)
        for fits, what in (
            (0 < contraction < 1, f"contraction={contraction}, expected a number in (0, 1)"),
            (log_det in LOG_DETS, f"log_det={log_det!r}, expected one of {', '.join(LOG_DETS)}"),
            (terms >= 1, f"terms={terms}, expected at least 1"),
            (tolerance > 0, f"tolerance={tolerance}, expected a number above 0"),
        ):
            if not fits:
                raise ConfigError(f"InvertibleResidual: {what}")
        check_contraction(branch)
        self.branch, self.contraction, self.log_det = branch, contraction, log_det
        self.terms, self.tolerance = terms, tolerance

    @property
    def truncation_bound(self) -> float:
        r"""How far ``"series"`` can be off in the mean: :math:`d\,c^{n+1}/((n+1)(1-c))` after n terms."""
        n, c = self.terms, self.contraction
        return self.dim * c ** (n + 1) / ((n + 1) * (1 - c))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,), an estimate where that was asked for."""
        self.check(x)
        keep = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = x if keep and x.requires_grad else x.clone().requires_grad_()
            moved = self.contraction * in_own_dtype(self.branch, point)
            exact = self.log_det == "exact" or (not self.training and self.dim <= self.exact_dim)
            log_det = self._exact(point, moved, keep) if exact else self._series(point, moved, keep)
        return (x + moved, log_det) if keep else (x + moved.detach(), log_det.detach())

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z, without gradients.

        Raises:
            NotSupportedError: Iteration does not contract as the branch declares, or values are not finite.
        """
        self.check(z)
        check_contraction(self.branch)
        unit = z.norm(dim=1, keepdim=True).clamp_min(1.0)
        goal = self.tolerance * (1 - self.contraction) / self.contraction
        x, step, steps, limit = z, math.inf, 0, 1
        while step > goal and steps < limit:
            following = z - self.contraction * in_own_dtype(self.branch, x)
            step = float(((following - x).norm(dim=1, keepdim=True) / unit).max()) if len(z) else 0.0
            x, steps = following, steps + 1
            if steps == 1 and goal < step < math.inf:  # the certified rate, and some steps more for rounding
                limit += 10 + math.ceil(math.log(goal / step) / math.log(self.contraction))
        if step <= max(goal, self._rounding(z.dtype)):
            return x
        raise NotSupportedError(
            f"InvertibleResidual.inverse: after {steps} steps, which are enough for a contraction by "
            f"{self.contraction}, the last one still has length {step:.3g} (tolerance {self.tolerance}): "
            f"{type(self.branch).__name__} does not keep the Lipschitz constant that it declares, or gives values that "
            "are not finite"
        )

    def _rounding(self, dtype: torch.dtype) -> float:
        """How long steps may stay that are rounding alone, relative to points of this dtype."""
        own = next(self.branch.parameters(), torch.empty(0, dtype=dtype)).dtype
        return 8 * max(torch.finfo(kind).eps for kind in (dtype, own)) / self.contraction

    def _exact(self, x: Tensor, moved: Tensor, keep: bool) -> Tensor:
        rows = [_pull(moved, x, _unit(moved, d), keep or d < self.dim - 1, keep) for d in range(self.dim)]
        jacobian = torch.stack(rows, 1).to(torch.promote_types(x.dtype, torch.float32))
        identity = torch.eye(self.dim, dtype=jacobian.dtype, device=x.device)
        log_det: Tensor = torch.linalg.slogdet(identity + jacobian).logabsdet
        return log_det.to(x.dtype)

    def _series(self, x: Tensor, moved: Tensor, keep: bool) -> Tensor:
        signs = torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1
        extra = 0
        if self.log_det == "roulette":
            while torch.rand(()) < 0.5:
                extra += 1
        vector, total = signs, x.new_zeros(len(x))
        for k in range(1, self.terms + extra + 1):
            vector = _pull(moved, x, vector, True, keep)
            weight = 2.0 ** max(k - self.terms, 0)  # one over the probability of coming this far
            total = total + (vector * signs).sum(1) * ((-1) ** (k + 1) * weight / k)
        return total


def _pull(y: Tensor, x: Tensor, vector: Tensor, retain: bool, create: bool) -> Tensor:
    """vector^T dy/dx for each point."""
    (pulled,) = torch.autograd.grad(y, x, vector, retain_graph=retain, create_graph=create)
    return pulled


def _unit(like: Tensor, d: int) -> Tensor:
    vector = torch.zeros_like(like)
    vector[:, d] = 1
    return vector


def check_contraction(branch: nn.Module) -> None:
    """Raise NotSupportedError unless the branch declares a Lipschitz constant of 1 at most in the 2-norm."""
    name = type(branch).__name__
    if not isinstance(branch, LipschitzDeclared):
        raise NotSupportedError(
            f"InvertibleResidual: {name} declares no Lipschitz constant (a method lipschitz_spec), so that x + c g(x) "
            "may not be invertible; use morphlightning.lipschitz.LipschitzNetwork"
        )
    spec = branch.lipschitz_spec()
    if not spec.constant <= 1 + 1e-5 or not {spec.norm_in, spec.norm_out} <= {"l2", "any"}:
        raise NotSupportedError(
            f"InvertibleResidual: {name} declares the Lipschitz constant {spec.constant:.6g} from {spec.norm_in} to "
            f"{spec.norm_out}, expected at most 1 from l2 to l2"
        )


def residual_flow(
    dim: int,
    layers: int = 8,
    hidden: Sequence[int] = (64, 64),
    contraction: float = 0.9,
    log_det: LogDet = "exact",
    activation: Spec | Callable[..., nn.Module] = QuadraticSpline,
) -> Composition:
    """Residual steps whose branches are 1-Lipschitz networks, each behind a normalization.

    Args:
        dim: Numbers of a point.
        layers: Number of residual steps.
        hidden: Widths of the branches' hidden layers.
        contraction: As for :class:`InvertibleResidual`, of all steps.
        log_det: As for :class:`InvertibleResidual`.
        activation: Of the branches, as for ``morphlightning.lipschitz.LipschitzNetwork``; best a smooth one, see
            :class:`~morphlightning.flows.QuadraticSpline`.

    Raises:
        ConfigError: A setting is out of its range.
    """
    if layers < 1:
        raise ConfigError(f"residual_flow: layers={layers}, expected at least 1")
    steps: list[Bijection] = []
    for _ in range(layers):
        branch = LipschitzNetwork((dim,), hidden, dim, activation=activation)
        steps += [Normalization(dim), InvertibleResidual(dim, branch, contraction, log_det)]
    return Composition(*steps, Normalization(dim))
