"""Losses by name: the functions of torch.nn.functional, or a callable of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from morphlightning.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
CLASSIFICATION = ("cross_entropy", "multi_margin_loss")
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def resolve(loss: str | Loss, known: Sequence[str]) -> Loss:
    """The loss function; it must be a mean over the batch.

    Raises:
        ConfigError: A name that is not among ``known``.
    """
    if callable(loss):
        return loss
    if loss not in known:
        raise ConfigError(
            f"loss {loss!r} is unknown here; choose one of {', '.join(known)}, or give a callable; a "
            "callable is not part of a checkpoint, so pass it again: load_from_checkpoint(path, loss=...)"
        )
    return getattr(F, loss)  # type: ignore[no-any-return]


def plain(loss: str | Loss) -> str:
    """The name that hyperparameters hold; of a callable it only says what has to be given again."""
    if isinstance(loss, str):
        return loss
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"
