"""Margins of decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from morphlightning.errors import ShapeError


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The margin :math:`z_y - \max_{k\ne y} z_k` of each sample: positive where the label is decided for.

    Args:
        logits: (batch, classes), classes >= 2; integer ones are taken to float64, which holds them.
        labels: (batch,), integers.

    Returns:
        (batch,), in the units of the logits.

    Raises:
        ShapeError: Other shapes.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"margin: logits {tuple(logits.shape)} with labels {tuple(labels.shape)}; expected (batch, classes) with "
            "at least 2 classes, and (batch,)"
        )
    logits = logits if logits.is_floating_point() else logits.double()
    chosen = labels[:, None]
    rival = logits.scatter(1, chosen, -torch.inf).max(1).values
    return logits.gather(1, chosen)[:, 0] - rival
