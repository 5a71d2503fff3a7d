"""Every max-plus operator inside a block as log-sum-exp: soft training of hard networks, whatever they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from morphlightning.errors import NotSupportedError
from morphlightning.functional.soft import check_beta, check_precision, log_sum_exp
from morphlightning.ops.dispatch import maxplus, maxplus_with_provenance
from morphlightning.ops.geometry import Dense, Geometry
from morphlightning.ops.plain import differentiated
from morphlightning.ops.policy import Policy


class _Gradient(torch.autograd.Function):
    """The first argument, with the gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, soft: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


class softened(TorchFunctionMode):
    r"""Inside this block every max-plus operator is :math:`\frac1\beta \log \sum_j e^{\beta s_j}` of its candidates s.

    Min-plus operators become the dual of it, compositions (openings, gradients, suprema of erosions) are softened
    operator by operator. Weights and modules stay what they are, so a network can be trained softly and used hard::

        with softened(beta):
            loss = criterion(network(x), y)
        loss.backward()

    The gradient is that of log-sum-exp: derivative rules, message heuristics and touch counts have no say. With
    ``gradient_only`` values stay maxima, so that the loss is that of the hard network, as under the rule ``soft``. Soft
    layers keep their own beta, and ``torch.max`` and pooling of torch stay as they are. Blocks may be nested; the inner
    one holds. Not for code under ``torch.compile``.

    Args:
        beta: Inverse temperature, > 0; the larger, the nearer to the maximum, see :func:`soft_dilation`.
        gradient_only: Keep the maxima, and take the gradient of log-sum-exp at them.
        precision: ``"full"`` or ``"bfloat16"``, as for :func:`soft_dilation`.

    Raises:
        ConfigError: beta is not a finite number > 0, or there is no such precision.
        NotSupportedError: Inside the block, an operator that asks where its maxima were taken, such as pooling with
            ``return_provenance``, or one with a batch of weight matrices.

    Source: Maslov dequantization; bounds are derived in docs/conventions.md, "Soft operators".
    """

    def __init__(self, beta: float, *, gradient_only: bool = False, precision: str = "full") -> None:
        super().__init__()
        check_beta("softened", beta)
        self._beta, self._gradient_only, self._precision = beta, gradient_only, check_precision("softened", precision)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Soften max-plus operators; leave everything else."""
        if func is maxplus:
            return self._soft(*args)
        if func is maxplus_with_provenance:
            raise NotSupportedError(
                "softened: this operator asks where its maxima were taken (return_provenance=True), but log-sum-exp "
                "takes none; leave it outside of the block"
            )
        return func(*args, **(kwargs or {}))

    def _soft(self, x: Tensor, w: Tensor, where: Geometry, how: Policy, *_: Any) -> Tensor:
        if isinstance(where, Dense) and where.groups > 1:
            raise NotSupportedError(
                "softened: a dense operator with a batch of weight matrices; take soft_dilation of one matrix at a time"
            )
        if not self._gradient_only:
            return log_sum_exp(x, w, self._beta, where, self._precision)
        y = maxplus(x.detach(), w.detach(), where, how)
        if not differentiated(x, w):
            return y
        soft = log_sum_exp(x, w, self._beta, where, self._precision)
        return cast(Tensor, _Gradient.apply(y, soft))  # type: ignore[no-untyped-call]
