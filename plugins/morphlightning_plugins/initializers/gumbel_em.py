"""Maximum likelihood under Gumbel noise, by expectation and maximization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.functional import dilation, soft_dilation
from morphlightning.interfaces import Initializer, SiteBatch, SiteSpec
from morphlightning_plugins.initializers.uniform import Upper

_DEEPEST = 50.0
"""How many scales a weight may end below the soft residuation: far enough never to win, and finite."""


@dataclass(frozen=True)
class GumbelEM(Initializer):
    r"""The most likely weights of units that give the wanted outputs up to noise; no step size, no draw.

    Each wanted output is taken for a draw of :math:`\mathrm{Gumbel}(B \log \sum_j e^{(x_j + w_j)/B}, B)`, which is the
    maximum of x plus Gumbel weights. In :math:`\theta_j = e^{w_j/B}` minus the log-likelihood is convex, and one
    iteration of EM is

    .. math:: w_j \leftarrow B \log N_j + \underbrace{-B \log \sum_n e^{(x_{nj} - y_n)/B}}_{\text{soft residuation}},
              \qquad N_j = \sum_n \mathrm{softmax}_j\!\left(\frac{x_n + w}{B}\right)_j,

    N_j being how many rows the tap is expected to win: the likelihood never falls, and there is nothing to tune but B.
    Everything is computed with log-sum-exp, so nothing overflows. For small B the second term is residuation, the
    minimum over the rows of y - x; other than that, EM forgives rows that contradict it. At the end each unit is
    shifted by its mean residual, so that the hard maximum has the right mean. Erosions by duality.

    It reads the data ``iterations`` + 3 times, and holds numbers of the size of the weight alone.

    Args:
        scale: B, in the units of the data: about the standard deviation of the noise over 1.28.
        iterations: Of EM.

    Source: derived in docs/guarantees.md.
    """

    data: ClassVar[Literal["none", "inputs", "pairs"]] = "pairs"
    reduce: ClassVar[Mapping[str, Literal["sum", "min", "max", "gather"]]] = {
        "least": "min",
        "sums": "sum",
        "residual": "sum",
        "rows": "sum",
    }
    scale: float = 0.1
    iterations: int = 30

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 < self.scale < math.inf or self.iterations < 1:
            raise ValueError(f"scale must be > 0 and iterations >= 1, got {self.scale} and {self.iterations}")

    @property
    def passes(self) -> int:
        """For the least differences, for the soft residuation, for each iteration, and for the mean residual."""
        return self.iterations + 3

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """As ``upper``, until there are data."""
        return Upper().fill(spec, generator)

    def begin(self, spec: SiteSpec, w: Tensor, previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights from what the last pass has found; sums begin anew."""
        like = torch.zeros(spec.shape, dtype=torch.float64, device=w.device)
        fresh = {"sums": like, "residual": like.new_zeros(spec.shape[0]), "rows": like.new_zeros(())}
        if not previous:
            return {"pass": torch.tensor(0), "w": w.double(), "soft": like, "least": like + math.inf, **fresh}
        state = {**previous, **fresh, "pass": previous["pass"] + 1}
        if state["pass"] == 2:
            state["soft"] = previous["least"] - self.scale * previous["sums"].log()
            state["w"] = self._likely(state, w, torch.ones_like(like))
        elif 2 < state["pass"] < self.passes:
            state["w"] = self._likely(state, w, previous["sums"])
        return state

    def _likely(self, state: Mapping[str, Tensor], w: Tensor, wins: Tensor) -> Tensor:
        """One maximization, where there were inputs and weights."""
        found = state["soft"] + self.scale * wins.log().clamp_min(-_DEEPEST)
        return torch.where(state["least"].isfinite() & (w > -math.inf), found, w.double())

    def update(self, state: dict[str, Tensor], batch: SiteBatch) -> None:
        """A batch's part in what the pass is for."""
        number, shape = int(state["pass"]), state["w"].shape
        if number == 0:
            state["least"] = torch.minimum(state["least"], batch.least().double().view(shape))
            return
        state["rows"] = state["rows"] + len(batch.x)
        groups = batch.x.shape[1]
        weights, least = (state[name].flatten(1).chunk(groups) for name in ("w", "least"))
        for group in range(groups):
            x, y = batch.x[:, group].double(), batch.y[:, group].double()
            units = slice(group * y.shape[1], (group + 1) * y.shape[1])
            if number == 1:
                found = self._residuated(x, y, least[group])
            elif number < self.passes - 1:
                found = self._expected_wins(x, weights[group])
            else:
                state["residual"][units] += (y - dilation(x, weights[group])).sum(0)
                continue
            state["sums"][units] += found.view(-1, *shape[1:])

    def _residuated(self, x: Tensor, y: Tensor, least: Tensor) -> Tensor:
        """The sum over rows of exp((least - (y - x)) / B), (units, candidates): between 1 and the rows in all data."""
        logs = soft_dilation(x.t(), -y.t(), 1 / self.scale).t() + least  # over the rows, with y in place of the weights
        return torch.where(least.isfinite(), (logs / self.scale).exp(), 0)

    def _expected_wins(self, x: Tensor, w: Tensor) -> Tensor:
        """The sum over rows of the probabilities to win: the gradient of the soft dilation, (units, candidates)."""
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            (wins,) = torch.autograd.grad(soft_dilation(x, w, 1 / self.scale).sum(), w)
        return wins

    def finish(self, spec: SiteSpec, w: Tensor, state: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """The weights of the last iteration, each unit shifted by its mean residual."""
        shift = state["residual"] / state["rows"]
        return (state["w"] + shift.view(-1, *(1,) * (len(spec.shape) - 1))).to(w.dtype)
