"""Attacks: inputs near given ones that a network decides otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError, ShapeError
from morphlightning.functional import softened
from morphlightning.guarantees.robustness.boxes import Clip, check_eps, check_range
from morphlightning.guarantees.robustness.margins import margin
from morphlightning.lipschitz.spec import Measured

Progress = Callable[[int, int], object]


class Attacked(NamedTuple):
    """What an attack found.

    Attributes:
        margins: The smallest margin found for each sample, (batch,); that of the sample itself where nothing is worse.
        examples: The inputs that have these margins, shape of the samples.
    """

    margins: Tensor
    examples: Tensor

    @property
    def robust(self) -> Tensor:
        """Which samples kept their label, (batch,): margin > 0, so a tie counts as broken."""
        return self.margins > 0

    @property
    def accuracy(self) -> float:
        """The share of robust samples: an upper bound of the accuracy under any attack within the radius."""
        return float(self.robust.double().mean())


@dataclass(frozen=True)
class PGD:
    r"""Projected gradient descent on the margin :math:`m(z) = z_y - \max_{k\ne y} z_k` of the logits.

    From each start x' in the ball of radius eps around a sample x, ``steps`` times

    .. math::

        x' \leftarrow \Pi\bigl(x' - \epsilon\, s_t\, d\bigr), \qquad
        s_t = s \tfrac{1 + \cos(\pi t/T)}{2},

    where d is the sign of the gradient of the margin (linf) or the gradient over its Euclidean norm (l2), s the first
    ``step``, T the number of steps, and :math:`\Pi` the projection onto the ball, then onto the box ``clip``. Each
    point on the way is a candidate, and the network as it is decides about it; a sample whose margin is 0 or less is
    broken and left.

    Gradients of max-plus networks are sparse: of a row of pixels, those that win get all of it. So the gradient is that
    of log-sum-exp in place of maxima, at the inverse temperature ``beta``, while values stay those of the network
    (:class:`morphlightning.functional.softened` with ``gradient_only``).

    It bounds the accuracy under attack from above, never from below: that no attack was found proves nothing.

    Args:
        eps: The radius, in the units of the inputs of the network.
        norm: Of the ball, over all numbers of a sample.
        clip: Smallest and largest value that an input may have; None for any.
        steps: T, gradients for each start.
        step: s, the first step, as a multiple of eps.
        restarts: Starts: the sample itself, then points drawn from the ball.
        targets: Besides all rivals at once, aim from each start at each of so many classes, those with the largest
            logits of the sample first; ``"all"`` for every class.
        beta: Inverse temperature of the gradients of maxima; None for the network's own gradients.
        chunk: Samples at a time.
        seed: Of the random starts. Random states of torch are left alone.

    Raises:
        ConfigError: Settings that cannot work, such as an eps that is not in the units of the inputs.

    Source: projected gradient descent (Madry et al., arXiv 1706.06083); targets one by one as in the attack of Gowal et
    al., arXiv 1910.09338. Gradients of log-sum-exp with values of maxima: derived here.
    """

    eps: float
    norm: Measured = "linf"
    clip: Clip = (0.0, 1.0)
    steps: int = 40
    step: float = 0.5
    restarts: int = 1
    targets: int | Literal["all"] = 0
    beta: float | None = 40.0
    chunk: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.step > 0 or min(self.steps, self.restarts, self.chunk) < 1:
            raise ConfigError(f"PGD: steps, step, restarts and chunk must be positive, got {self}")
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"PGD: norm must be 'linf' or 'l2', got {self.norm!r}")
        if self.targets != "all" and not (isinstance(self.targets, int) and self.targets >= 0):
            raise ConfigError(f"PGD: targets must be a number >= 0 or 'all', got {self.targets!r}")
        check_eps(self.eps, self.clip if self.norm == "linf" else None)

    def __call__(
        self,
        network: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        *,
        surrogate: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Attacked:
        """Attack every sample; works under ``torch.no_grad`` and ``torch.inference_mode`` too.

        Args:
            network: Inputs (batch, ...) to logits (batch, classes), in evaluation mode.
            inputs: The samples, inside ``clip``.
            labels: The labels to break, (batch,).
            surrogate: Gives gradients in place of the network, which may then have none (integer arithmetic).
            progress: Called with the number of samples done and of all, after each chunk.

        Raises:
            ConfigError: The network is in training mode.
            DataError: Inputs outside ``clip`` or not floating-point, or none at all.
            ShapeError: Labels that are not (batch,), or logits that are not (batch, classes >= 2).
        """
        self._check(network, inputs, labels)
        generator = torch.Generator().manual_seed(self.seed)
        found: list[Attacked] = []
        with torch.inference_mode(False), torch.enable_grad():
            for x, y in zip(inputs.split(self.chunk), labels.split(self.chunk), strict=True):
                attack = _Attack(self, network, surrogate or network, x.detach().clone(), y.clone())
                found.append(attack.run(generator))
                if progress is not None:
                    progress(sum(len(part.margins) for part in found), len(inputs))
        return Attacked(torch.cat([part.margins for part in found]), torch.cat([part.examples for part in found]))

    def _check(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        check_range(inputs, self.clip)
        if network.training:
            raise ConfigError("PGD: the network is in training mode, where it may depend on the batch; call eval()")
        if labels.shape != inputs.shape[:1]:
            raise ShapeError(f"PGD: labels {tuple(labels.shape)} of inputs {tuple(inputs.shape)}; expected (batch,)")
        if not len(inputs):
            raise DataError("PGD: there are no samples")


class _Attack:
    """The attack on one chunk: the worst so far, and how to make it worse."""

    def __init__(self, how: PGD, network: nn.Module, surrogate: nn.Module, x: Tensor, y: Tensor) -> None:
        self.how, self.network, self.surrogate, self.x, self.y = how, network, surrogate, x, y
        with torch.no_grad():
            logits = network(x)
            self.margins, self.examples = margin(logits, y), x.clone()
            ranking = logits.double().scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]
        self.rivals = ranking if how.targets == "all" else ranking[:, : how.targets]
        # what rounding may add to a distance from x is taken off, so that no example is further than eps
        reach = float(x.abs().max()) + how.eps
        numbers = 1.0 if how.norm == "linf" else math.sqrt(x[0].numel())
        self.radius = max(how.eps - 4 * torch.finfo(x.dtype).eps * reach * numbers, how.eps / 2)

    def run(self, generator: torch.Generator) -> Attacked:
        for restart in range(self.how.restarts):
            start = self._start(restart, generator)
            self._descend(start, None)
            for rank in range(self.rivals.shape[1]):
                self._descend(start, rank)
        with torch.no_grad():  # of what is returned, in one pass as a user would make it
            margins = margin(self.network(self.examples), self.y)
        return Attacked(margins, self.examples)

    def _start(self, restart: int, generator: torch.Generator) -> Tensor:
        if restart == 0:
            return self.x
        shape, dtype = self.x.shape, self.x.dtype
        if self.how.norm == "linf":
            noise = torch.rand(shape, generator=generator, dtype=dtype).to(self.x) * 2 - 1
        else:
            noise = torch.randn(shape, generator=generator, dtype=dtype).to(self.x)
            length = torch.rand(len(noise), generator=generator, dtype=dtype).to(self.x)
            noise = noise * _column(length ** (1 / noise[0].numel()) / _length(noise), noise)
        return self._project(self.x + self.radius * noise, slice(None))

    def _descend(self, start: Tensor, rank: int | None) -> None:
        """From a start, against the rival of a rank or all of them; of the samples that still stand."""
        left = (self.margins > 0).nonzero()[:, 0]
        z = start[left]
        for t in range(self.how.steps + 1):
            if not len(left):
                return
            last = t == self.how.steps
            margins, gradient = self._gradient(z, left, rank, last)
            self._keep(z, margins, left)
            stands = margins > 0
            if last:
                return
            left, z, gradient = left[stands], z[stands], gradient[stands]
            step = self.how.eps * self.how.step * (1 + math.cos(math.pi * t / self.how.steps)) / 2
            z = self._project(z - step * self._direction(gradient), left)

    def _gradient(self, z: Tensor, rows: Tensor, rank: int | None, last: bool) -> tuple[Tensor, Tensor]:
        """Margins at z by the network, and the gradient of what is to fall."""
        if last:
            with torch.no_grad():
                return margin(self.network(z), self.y[rows]), z
        z = z.detach().requires_grad_()
        with softened(self.how.beta, gradient_only=True) if self.how.beta else nullcontext():
            logits = self.surrogate(z)
        y = self.y[rows]
        margins = margin(logits, y)
        aim = margins if rank is None else _gap(logits, y, self.rivals[rows, rank])
        (gradient,) = torch.autograd.grad(aim.sum(), z)
        if self.surrogate is not self.network:
            with torch.no_grad():
                margins = margin(self.network(z.detach()), y)
        return margins.detach(), gradient

    def _keep(self, z: Tensor, margins: Tensor, rows: Tensor) -> None:
        worse = margins < self.margins[rows]
        self.margins[rows[worse]] = margins[worse]
        self.examples[rows[worse]] = z[worse].detach()

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.how.norm == "linf":
            return gradient.sign()
        return gradient / _column(_length(gradient), gradient)

    def _project(self, z: Tensor, rows: Tensor | slice) -> Tensor:
        x = self.x[rows]
        if self.how.norm == "linf":
            z = torch.minimum(torch.maximum(z, x - self.radius), x + self.radius)
        else:
            change = z - x
            z = x + change * _column((self.radius / _length(change)).clamp_max(1), change)
        return z if self.how.clip is None else z.clamp(*self.how.clip)


def _gap(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, rivals[:, None])[:, 0]


def _length(x: Tensor) -> Tensor:
    """Euclidean norms of samples, (batch,); none is 0."""
    length: Tensor = x.flatten(1).norm(dim=1)
    return length.clamp_min(torch.finfo(x.dtype).tiny)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))
