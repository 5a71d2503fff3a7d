"""Losses by name: the functions of torch.nn.functional, those of our own, or a callable of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.robustness import margin

Loss = Callable[[Tensor, Tensor], Tensor]
CLASSIFICATION = ("cross_entropy", "multi_margin_loss", "margin_hinge")
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


class MarginHinge(nn.Module):
    r"""Clipped hinge of the margin that a certificate of radius eps asks for, and some cross-entropy beside it.

    With the margin :math:`m = z_y - \max_{k \ne y} z_k` of logits z with label y,

    .. math::

        \mathrm{mean}\ \min\Bigl(1, \max\bigl(0, 1 - \tfrac{m}{2\epsilon}\bigr)\Bigr)
        + \lambda\, \mathrm{CE}(s z, y).

    Of a network that is 1-Lipschitz in linf, a sample with margin above 2 eps keeps its class within eps, so that the
    hinge without its slope, [m <= 2 eps], is the share of samples that are not certified. Misclassified samples count
    1 and have no gradient: the hinge pulls at those within reach, and at others only the cross-entropy does. So start
    with lambda > 0 and lower it while training.

    Args:
        eps: The radius that is trained for, in the units of the data that the network sees; usually above the one that
            is to be certified.
        cross_entropy: lambda, the weight of the cross-entropy; 0 leaves misclassified samples alone.
        scale: s at the start. It is learned, through its logarithm, and belongs to the loss: the margins that
            certificates read are those of the logits themselves.

    Attributes:
        cross_entropy: A buffer; change it with :meth:`set_cross_entropy`.

    Raises:
        ConfigError: eps or scale that is not positive, or a negative cross_entropy.
        ShapeError: In the forward pass, logits that are not (batch, classes >= 2) or labels that are not (batch,).

    Source: the loss of l_inf-distance networks (Zhang, Jiang, He and Wang, "Boosting the certified robustness of
    L-infinity distance nets", arXiv 2110.06850), as their published training code has it; written with eps here.
    """

    roles: ClassVar[Mapping[str, str]] = {"log_scale": "scale"}
    cross_entropy: Tensor

    def __init__(self, eps: float, cross_entropy: float = 0.0, scale: float = 10.0) -> None:
        super().__init__()
        if not 0 < eps < float("inf") or not 0 < scale < float("inf"):
            raise ConfigError(f"MarginHinge: eps and scale must be finite and > 0, got eps={eps}, scale={scale}")
        self.eps = eps
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        self.register_buffer("cross_entropy", torch.zeros(()))
        self.set_cross_entropy(cross_entropy)

    def set_cross_entropy(self, weight: float) -> None:
        """Change lambda.

        Raises:
            ConfigError: It is negative or not finite.
        """
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"MarginHinge: cross_entropy must be finite and >= 0, got {weight}")
        self.cross_entropy.fill_(weight)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (batch, classes) with labels (batch,): a scalar, in float32 or float64."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            hinge = (1 - margin(logits, labels) / (2 * self.eps)).clamp(0, 1).mean()
            # also with the weight 0: DDP wants a gradient of every parameter
            return hinge + self.cross_entropy * F.cross_entropy(logits * self.log_scale.exp(), labels)

    def extra_repr(self) -> str:
        """The numbers as they are now."""
        return f"eps={self.eps}, cross_entropy={float(self.cross_entropy):g}, scale={float(self.log_scale.exp()):g}"


_OWN: dict[str, Callable[..., Loss]] = {"margin_hinge": MarginHinge}


def resolve(loss: str | Mapping[str, Any] | Loss, known: Sequence[str]) -> Loss:
    """The loss function; it must be a mean over the batch.

    Raises:
        ConfigError: A name that is not among ``known``, or settings that the loss does not take or misses.
    """
    if callable(loss):
        return loss
    given = dict(loss) if isinstance(loss, Mapping) else {"name": loss}
    name = str(given.pop("name", None))
    if name not in known:
        raise ConfigError(
            f"loss {loss!r} is unknown here; choose one of {', '.join(known)}, or give a callable; a "
            "callable is not part of a checkpoint, so pass it again: load_from_checkpoint(path, loss=...)"
        )
    if name in _OWN:
        try:
            return _OWN[name](**given)
        except TypeError as error:
            raise ConfigError(
                f"loss {loss!r}: {error}; give its settings in a mapping, such as {{'name': {name!r}, 'eps': 0.1}}"
            ) from error
    if given:
        raise ConfigError(f"loss {loss!r}: {name} takes no settings, got {', '.join(given)}")
    return getattr(F, name)  # type: ignore[no-any-return]


def plain(loss: Any) -> str | dict[str, Any]:
    """What hyperparameters hold; of a callable it only says what has to be given again."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, Mapping):
        return dict(loss)
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"
