"""How far a certificate is from an attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from morphlightning.errors import BrokenCertificateError, DtypeError, ShapeError
from morphlightning.guarantees.robustness import Attacked

_SHOWN = 10


class AttackGap(Metric):
    r"""Accuracy under attack less certified accuracy, on the same samples at the same radius.

    .. math:: \frac1N \#\{n: m_n > 0\} - \frac1N \#\{n: n\ \text{is certified}\}

    with the margins m that the attack left. The robust accuracy lies between both terms, so the gap is what neither
    knows: 0 where every sample is either certified or broken. It has no unit.

    A sample that is certified and broken contradicts its certificate, whatever the mean of the others is. Then
    ``compute`` gives no number, but fails, on all processes.

    Args:
        **kwargs: Options of ``torchmetrics.Metric``.

    Raises:
        BrokenCertificateError: By ``compute``; the message names the samples.

    Source: derived here.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    robust: Tensor
    certified: Tensor
    count: Tensor
    broken: list[Tensor] | Tensor  # a tensor once processes are joined
    broken_margins: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("robust", "certified", "count"):
            self.add_state(state, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("broken", [], dist_reduce_fx="cat")
        self.add_state("broken_margins", [], dist_reduce_fx="cat")

    def update(self, attacked: Attacked, certified: Tensor, samples: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            attacked: What the attack found.
            certified: Whether each sample is certified to keep its label within the radius of the attack, (batch,)
                boolean.
            samples: What to call the samples in an error, (batch,) integers; by default they are counted from 0 on,
                separately on each process.

        Raises:
            ShapeError: Not as many certificates as samples.
            DtypeError: Certificates that are not boolean.
        """
        if certified.dtype != torch.bool:
            raise DtypeError(
                f"AttackGap: certified is {certified.dtype}, expected torch.bool; a certified radius has to be "
                "compared with that of the attack"
            )
        if certified.shape != attacked.margins.shape:
            raise ShapeError(
                f"AttackGap: {tuple(certified.shape)} certificates of {tuple(attacked.margins.shape)} attacked samples"
            )
        if samples is None:
            samples = self.count + torch.arange(len(certified), device=certified.device)
        wrong = certified & ~attacked.robust
        # also where there are none: all processes must have something to gather
        self.broken.append(samples[wrong])  # type: ignore[union-attr]
        self.broken_margins.append(attacked.margins[wrong])  # type: ignore[union-attr]
        self.robust += attacked.robust.sum()
        self.certified += certified.sum()
        self.count += len(certified)

    def compute(self) -> Tensor:
        """The gap over all batches, a scalar in [0, 1]."""
        broken, margins = dim_zero_cat(self.broken).tolist(), dim_zero_cat(self.broken_margins).tolist()
        if broken:
            shown = list(zip(broken, margins, strict=True))[:_SHOWN]
            named = ", ".join(f"{sample} (margin {margin:.3g})" for sample, margin in shown)
            more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
            raise BrokenCertificateError(
                f"AttackGap: {len(broken)} of {int(self.certified)} certified samples were broken within the radius: "
                f"{named}{more}. The certificate is wrong, or it was asked for another radius, norm, network or mode"
            )
        return (self.robust - self.certified) / self.count
