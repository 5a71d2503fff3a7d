"""How much better a network is on the data it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from morphlightning.errors import ConfigError
from morphlightning.guarantees.robustness import margin

_PARTS = ("train", "test")


class GeneralizationGap(Metric):
    r"""Loss and accuracy on test data beside those on training data, and the distribution of margins on both.

    ``compute`` gives a dictionary of scalars:

    - ``loss_gap``: test loss less training loss, an estimate of the generalization error :math:`\ell_{exp}-\ell_{emp}`;
    - ``accuracy_gap``: training accuracy less test accuracy; both are positive where test data fare worse;
    - ``train_margin_q10``, ``test_margin_q10``, ...: quantiles of the margin :math:`z_y - \max_{k\ne y} z_k`, in the
      units of the logits; those of networks with different Lipschitz constants are not comparable.

    What has no samples of one of the parts yet is NaN. The network that made the logits is the caller's matter: logits
    of training steps are of a network on the move, in training mode.

    Args:
        loss: Mean loss of (logits, labels).
        quantiles: Levels in [0, 1].
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        ConfigError: A level outside [0, 1].
        ShapeError: In ``update``, logits that are not (batch, classes >= 2) or labels that are not (batch,).

    Source: the generalization error as in the survey "Mathematics of deep learning" (Vidal et al., arXiv 1712.04741).
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    loss: Tensor
    correct: Tensor
    count: Tensor

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not all(0 <= level <= 1 for level in quantiles):
            raise ConfigError(f"GeneralizationGap: quantiles must lie in [0, 1], got {tuple(quantiles)}")
        self.mean_loss, self.quantiles = loss, tuple(quantiles)
        self.add_state("loss", torch.zeros(2), dist_reduce_fx="sum")
        for state in ("correct", "count"):
            self.add_state(state, torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        for part in _PARTS:
            self.add_state(f"{part}_margins", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, train: bool) -> None:
        """Add a batch of training or of test data: logits (batch, classes) and labels (batch,)."""
        logits = logits.detach()
        margins = margin(logits if logits.dtype == torch.float64 else logits.float(), labels)
        part = 0 if train else 1
        self.loss[part] += self.mean_loss(logits, labels).detach() * len(labels)
        self.correct[part] += (logits.argmax(1) == labels).sum()
        self.count[part] += len(labels)
        # none of the other part, so that each process has something to gather of both
        self.train_margins.append(margins if train else margins[:0])  # type: ignore[operator, union-attr]
        self.test_margins.append(margins[:0] if train else margins)  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        """The gaps and the quantiles over all batches."""
        train_loss, test_loss = (self.loss / self.count).unbind()
        train_accuracy, test_accuracy = (self.correct / self.count).unbind()
        values = {"loss_gap": test_loss - train_loss, "accuracy_gap": train_accuracy - test_accuracy}
        for part in _PARTS:
            kept = getattr(self, f"{part}_margins")
            margins = dim_zero_cat(kept) if len(kept) else self.loss[:0]
            for level in self.quantiles:
                values[f"{part}_margin_q{100 * level:g}"] = (
                    margins.quantile(level) if len(margins) else margins.new_tensor(torch.nan)
                )
        return values
