"""Which losses a certificate of global optimality can be given for: convex in the output, with a known conjugate."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from morphlightning.bregman import CrossEntropy, OutputLoss, SquaredError
from morphlightning.errors import ConfigError


def output_loss_of(loss: Any, outputs: int) -> OutputLoss:
    """The loss of a sample whose mean over samples a training loss is.

    Args:
        loss: ``torch.nn.functional.mse_loss`` or ``cross_entropy``, or one of ``morphlightning.bregman``'s
            SquaredError and CrossEntropy.
        outputs: Numbers in the output of a sample, over which ``mse_loss`` takes the mean.

    Raises:
        ConfigError: Another loss.
    """
    if loss is F.mse_loss:
        return SquaredError(2 / outputs)
    if loss is F.cross_entropy:
        return CrossEntropy()
    if type(loss) in (SquaredError, CrossEntropy):
        found: OutputLoss = loss
        return found
    raise ConfigError(
        f"no bound of the global optimum is known for the loss {loss!r}; take mse_loss, cross_entropy, or "
        "morphlightning.bregman's SquaredError or CrossEntropy"
    )


def furthest(loss: OutputLoss) -> float:
    """The largest factor t that :func:`dual_values` are asked for."""
    return 1.0 if isinstance(loss, CrossEntropy) else float("inf")


def dual_values(loss: OutputLoss, output: Tensor, target: Tensor, factor: float) -> Tensor:
    r"""The smallest value over z of l(z, y) - t <g, z>, with the gradient g = l'(output, y), of each sample, (N,).

    With r = y - output and weight w it is :math:`w (t \langle r, y \rangle - t^2 |r|^2 / 2)` for the squared error; for
    the cross-entropy the entropy of :math:`(1 - t) y + t\, \mathrm{softmax}(\mathrm{output})`, t in [0, 1].

    Source: derived here; minus the convex conjugates of the losses at t g.
    """
    if isinstance(loss, CrossEntropy):
        mixed = target.lerp(output.softmax(-1), factor)
        return -mixed.xlogy(mixed).sum(-1)
    rest = (target - output).flatten(1)
    inner = (rest * target.flatten(1)).sum(1)
    return loss.lipschitz * (factor * inner - 0.5 * factor**2 * rest.square().sum(1))
