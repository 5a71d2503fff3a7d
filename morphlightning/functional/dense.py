"""Dense operators: every output sees every input of the last axis."""

from __future__ import annotations

from torch import Tensor

from morphlightning.functional.checks import check_dense
from morphlightning.interfaces import Spec
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.geometry import DENSE, DUAL_DENSE, Dense
from morphlightning.ops.policy import Policy
from morphlightning.ops.statistics import NO_GHOSTS, Ghosts
from morphlightning.pipeline import policy_of


def max_plus(x: Tensor, w: Tensor, policy: Policy, ghosts: Ghosts = NO_GHOSTS) -> Tensor:
    """max_j x[..., j] + w[i, j] under a policy; the core of all dense operators (shapes are not checked)."""
    return _last_axis(x, w, policy, ghosts, dual=False)


def min_plus(x: Tensor, w: Tensor, policy: Policy, ghosts: Ghosts = NO_GHOSTS) -> Tensor:
    """min_j x[..., j] - w[i, j] under a policy: the dual of :func:`max_plus`."""
    return _last_axis(x, w, policy, ghosts, dual=True)


def _last_axis(x: Tensor, w: Tensor, policy: Policy, ghosts: Ghosts, dual: bool) -> Tensor:
    if w.ndim == 2:
        y = maxplus(x.reshape(-1, x.shape[-1]), w, DUAL_DENSE if dual else DENSE, policy, ghosts)
        return y.view(*x.shape[:-1], w.shape[0])
    matrices, outs, _ = w.shape
    side_by_side = x.movedim(0, -2)  # one group for each matrix
    flat, ghosts = side_by_side.flatten(-2).reshape(-1, x.shape[-1] * matrices), ghosts.arranged(_stacked)
    y = maxplus(flat, _stacked(w), Dense(matrices, dual), policy, ghosts)
    return y.view(*side_by_side.shape[:-1], outs).movedim(-2, 0)


def _stacked(w: Tensor) -> Tensor:
    """(matrices, out, in) as (matrices * out, in)."""
    return w.flatten(0, 1)


def dilation(x: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    r"""Dense dilation :math:`y_i = \max_j x_j + w_{ij}`.

    Args:
        x: Input, shape ``(..., in)``; values may be -inf, the neutral element of max.
        w: Weights in the units of x, shape ``(out, in)``; -inf marks a missing weight. A row without a finite weight
            gives -inf. Or a batch of matrices ``(batch, out, in)``, one for each element of the first axis of x, as in
            torch.bmm.
        derivative: Derivative rule: who receives the gradient where maxima tie.

    Returns:
        Shape ``(..., out)``, dtype of x; scores of half-precision inputs are computed in float32.

    Raises:
        ShapeError: The last axis of x does not fit w.
        DtypeError: x or w is not floating-point.

    Source: the matrix-vector product of max-plus algebra; docs/conventions.md, "The table".
    """
    check_dense("dilation", x, w, 1, batched=True)
    return max_plus(x, w, policy_of(derivative))


def erosion(x: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    r"""Dense erosion :math:`y_i = \min_j x_j - w_{ij}`, the dual :math:`-\delta_w(-x)` of :func:`dilation`.

    Args, returns and errors as for :func:`dilation`; a row without a finite weight gives +inf.
    """
    check_dense("erosion", x, w, 1, batched=True)
    return min_plus(x, w, policy_of(derivative))


def adjoint_erosion(y: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    r"""The erosion adjoint to :func:`dilation`: :math:`x_j = \min_i y_i - w_{ij}`.

    ``dilation(x, w) <= y`` if and only if ``x <= adjoint_erosion(y, w)``.

    Args:
        y: Input, shape ``(..., out)``.
        w: Weights, shape ``(out, in)``.
        derivative: Derivative rule.

    Returns:
        Shape ``(..., in)``, dtype of y.

    Raises:
        ShapeError: The last axis of y does not fit w.
        DtypeError: y or w is not floating-point.
    """
    check_dense("adjoint_erosion", y, w, 0, batched=True)
    return min_plus(y, w.mT, policy_of(derivative))


def adjoint_dilation(y: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    r"""The dilation adjoint to :func:`erosion`: :math:`x_j = \max_i y_i + w_{ij}`.

    ``y <= erosion(x, w)`` if and only if ``adjoint_dilation(y, w) <= x``. Arguments as for :func:`adjoint_erosion`.
    """
    check_dense("adjoint_dilation", y, w, 0, batched=True)
    return max_plus(y, w.mT, policy_of(derivative))


def opening(x: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    r"""Opening ``adjoint_dilation(erosion(x, w), w)``: increasing, anti-extensive, idempotent.

    Args:
        x: Input, shape ``(..., in)``.
        w: Weights, shape ``(out, in)``, used by both stages.
        derivative: Derivative rule of both stages.

    Returns:
        Shape ``(..., in)``; at most x. An input that no weight reaches gives -inf.

    Raises:
        ShapeError: The last axis of x does not fit w.
        DtypeError: x or w is not floating-point.
    """
    return adjoint_dilation(erosion(x, w, derivative=derivative), w, derivative=derivative)


def closing(x: Tensor, w: Tensor, *, derivative: Spec = "first") -> Tensor:
    """Closing ``adjoint_erosion(dilation(x, w), w)``: increasing, extensive, idempotent; arguments as for opening."""
    return adjoint_erosion(dilation(x, w, derivative=derivative), w, derivative=derivative)
