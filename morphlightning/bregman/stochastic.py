"""The lifted objective by mini-batches: with auxiliary variables kept for each sample, or with none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from morphlightning.bregman.chain import Chain
from morphlightning.bregman.losses import OutputLoss
from morphlightning.bregman.majorize import Lifted, LiftedBatch
from morphlightning.bregman.method import Moments, Samples, check_positive
from morphlightning.errors import ConfigError


class Incremental(Lifted):
    """Incremental majorization and minimization: sums over all samples, of which each batch replaces its own share.

    A sample keeps x_l and the targets t_l = u_l - (dF/du_l) / c of its last visit, c the curvature of the layer. After
    each batch V (c G_l + lambda I) = c R_l is solved with G_l = sum a^T a and R_l = sum t^T a over all samples seen;
    ridge counts by the share of samples that were seen. Memory: the hidden values of a sample twice, and its output
    unless the loss is squared error.

    Args:
        chain: The network.
        loss: The loss of its output.
        size: Number of samples over all processes; a loop that trains sets it.
        mu: Weight of the layers' Bregman losses.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        inner_x: X-steps of a layer in one visit.

    Source: derived in docs/lifted.md; the scheme is incremental majorization-minimization (Mairal, arXiv 1402.4419).
    """

    full_batch = fixed_input = False

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        size: int = 0,
        *,
        mu: float = 3.0,
        ridge: float | Sequence[float] = 1.0,
        tau_x: float = 1.9,
        inner_x: int = 1,
    ) -> None:
        super().__init__(chain, loss, mu, ridge, tau_x, inner_x)
        self.size, self.seen = size, 0
        self._totals: list[Moments] = []

    def begins_anew(self, known: int) -> bool:
        """Where variables of samples are lost whose shares are in the sums: then these are taken anew, too."""
        if known == self.seen:
            return False
        self.seen, self.input_gram, self._totals = 0, None, []
        return True

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor) -> Samples:
        """Take x from a forward pass, and mark that nothing of the sample is in the sums yet."""
        pre = self.chain.forward(x.to(self.dtype))
        targets = {f"t{i + 1}": torch.zeros_like(pre[i]) for i in self._kept()}
        return super().start(x, y) | targets | {"counted": torch.zeros(len(x), dtype=torch.bool, device=self.device)}

    @torch.no_grad()
    def piece(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """As the base; the sums are the differences that this batch makes."""
        layers, counted = range(len(self.chain)), samples["counted"]
        batch = LiftedBatch(self, samples, x, y)
        if counted.any():
            old = [samples[f"t{i + 1}"] if i in self._kept() else batch.y for i in layers]
            self.add_moments([each[counted] for each in batch.x], [each[counted] for each in old], sign=-1)
        targets = self.sweep(batch).targets()
        self.add_moments(batch.x, targets)
        samples |= {f"t{i + 1}": targets[i] for i in self._kept()}
        samples["counted"] = torch.ones_like(counted)

    def _kept(self) -> range:
        """The layers whose targets are kept; those of a quadratic loss are the network's own."""
        return range(len(self.chain) - self.loss.is_quadratic)

    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """Least squares over all samples seen."""
        check_positive("Incremental", size=self.size)
        self.seen += self.count
        before = self._totals or [Moments(torch.zeros_like(gram), torch.zeros_like(moment)) for gram, moment in moments]
        self._totals = [
            Moments(gram if self.input_gram is gram else total.gram + gram, total.moment + moment)
            for total, (gram, moment) in zip(before, moments, strict=True)
        ]
        if self.seen == self.size:
            self.input_gram = self._totals[0].gram
        share = self.seen / self.size
        return [
            self.regress(i, total, share * self.ridge[i] / self.curvature(i)) for i, total in enumerate(self._totals)
        ]

    def state_dict(self) -> dict[str, Any]:
        """With the sums over all samples."""
        totals = [[total.gram, total.moment] for total in self._totals]
        return super().state_dict() | {"seen": self.seen, "totals": totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base."""
        super().load_state_dict(state)
        self.seen = state["seen"]
        self._totals = [Moments(*(part.to(self.device) for part in total)) for total in state["totals"]]
        self.input_gram = self._totals[0].gram if self._totals and self.seen == self.size else None


class _WithoutMemory(Lifted):
    """Methods that keep nothing of a sample: auxiliary variables begin with a forward pass at each visit."""

    persistent = full_batch = fixed_input = False

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        size: int,
        mu: float,
        ridge: float | Sequence[float],
        tau_x: float,
        inner_x: int,
    ) -> None:
        super().__init__(chain, loss, mu, ridge, tau_x, inner_x)
        self.size = size

    @torch.no_grad()
    def piece(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """As the base."""
        batch = self.sweep(LiftedBatch(self, self.start(x, y), x, y))
        self.add_moments(batch.x, batch.targets())

    def step(self, i: int, moments: Moments, gram: Tensor, held: float) -> Tensor:
        """D with D (gram + (lambda / n + held) I) = the gradient in V of the objective, as a mean over the batch."""
        check_positive(type(self).__name__, size=self.size)
        v, ridge = self.weights(i), self.ridge[i] / self.size
        slope = self.curvature(i) / self.count * (v @ moments.gram - moments.moment) + ridge * v
        return self.regress(i, Moments(gram, slope), ridge + held)


class Memoryless(_WithoutMemory):
    """Implicit stochastic gradient steps: least squares on each batch, held near the present weights.

    D (c G / |S| + (lambda / n + 1 / tau) I) = c (V G - R) / |S| + lambda / n V, V <- V - D, sums over the batch S.

    Args:
        chain: The network.
        loss: The loss of its output.
        size: Number of samples n over all processes, for the weight of ridge; a loop that trains sets it.
        mu: Weight of the layers' Bregman losses.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        tau: Step size of the proximal point, > 0.
        inner_x: X-steps of a layer in one iteration.

    Source: the implicit stochastic gradient method of Wang and Benning, JMLR 24(232), 2023, with one sweep over the
    blocks, and the weights solved for; that step is derived in docs/lifted.md.
    """

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        size: int = 0,
        *,
        mu: float = 3.0,
        ridge: float | Sequence[float] = 1.0,
        tau_x: float = 1.0,
        tau: float = 1.0,
        inner_x: int = 1,
    ) -> None:
        super().__init__(chain, loss, size, mu, ridge, tau_x, inner_x)
        check_positive("Memoryless", tau=tau)
        self.tau = tau

    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """The step of all layers."""
        return [self.weights(i) - self._step(i, each) for i, each in enumerate(moments)]

    def _step(self, i: int, moments: Moments) -> Tensor:
        gram = self.curvature(i) * moments.gram / self.count
        return self.step(i, moments, gram, 1 / self.tau)


class MovingAverage(_WithoutMemory):
    """Steps preconditioned by a moving average of the Gram matrices, as a natural gradient is.

    H <- beta H + (1 - beta) c G / |S|,
    D (H / (1 - beta^k) + (lambda / n + damping) I) = c (V G - R) / |S| + lambda / n V,
    V <- V - lr / (1 + decay k) D, with k the iteration.

    Args:
        chain: The network.
        loss: The loss of its output.
        size: Number of samples n over all processes, for the weight of ridge; a loop that trains sets it.
        mu: Weight of the layers' Bregman losses.
        ridge: See :class:`Method`.
        tau_x: In (0, 2).
        lr: Step size, > 0; 0.3 diverged in our measurements.
        decay: How fast the steps become smaller, >= 0.
        beta: Of the moving average, in [0, 1).
        damping: Added to the diagonal, > 0.
        inner_x: X-steps of a layer in one iteration.

    Source: derived in docs/lifted.md.
    """

    def __init__(
        self,
        chain: Chain,
        loss: OutputLoss,
        size: int = 0,
        *,
        mu: float = 3.0,
        ridge: float | Sequence[float] = 1.0,
        tau_x: float = 1.0,
        lr: float = 0.1,
        decay: float = 0.0,
        beta: float = 0.95,
        damping: float = 1e-3,
        inner_x: int = 1,
    ) -> None:
        super().__init__(chain, loss, size, mu, ridge, tau_x, inner_x)
        check_positive("MovingAverage", lr=lr, damping=damping)
        if not decay >= 0:
            raise ConfigError(f"MovingAverage: decay must be >= 0, got {decay}")
        if not 0 <= beta < 1:
            raise ConfigError(f"MovingAverage: beta must lie in [0, 1), got {beta}")
        self.lr, self.decay, self.beta, self.damping = lr, decay, beta, damping
        self._averages: list[Tensor] = []

    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """The step of all layers."""
        shares = [self.curvature(i) * each.gram / self.count for i, each in enumerate(moments)]
        averages = self._averages or [torch.zeros_like(share) for share in shares]
        self._averages = [old.lerp(new, 1 - self.beta) for old, new in zip(averages, shares, strict=True)]
        lr = self.lr / (1 + self.decay * self.iteration)
        return [self.weights(i) - lr * self._step(i, each) for i, each in enumerate(moments)]

    def _step(self, i: int, moments: Moments) -> Tensor:
        average = self._averages[i] / (1 - self.beta ** (self.iteration + 1))
        return self.step(i, moments, average, self.damping)

    def state_dict(self) -> dict[str, Any]:
        """With the averages."""
        return super().state_dict() | {"averages": list(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base."""
        super().load_state_dict(state)
        self._averages = [average.to(self.device) for average in state["averages"]]
