r"""Two published methods that split a network with quadratic penalties: block coordinate descent and ADMM.

Both minimize over weights V_l = [W_l, b_l], pre-activations and activations of all samples, with inputs
:math:`A_{l-1} = [x_{l-1}, 1]`, :math:`\sigma` = ReLU on hidden layers, and sums over samples of ½ squared distances.
Both have a ridge in the least squares here, as BADMM has. The updates are those of the papers, for these networks and
this loss; the implementations are our own.

Sources: J. Zeng, T. T.-K. Lau, S. Lin, Y. Yao, Global convergence of block coordinate descent in deep learning, ICML
2019, arXiv 1803.00225 (three-splitting). G. Taylor, R. Burmeister, Z. Xu, B. Singh, A. Patel, T. Goldstein, Training
neural networks without gradients: a scalable ADMM approach, ICML 2016, arXiv 1605.02026.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from morphlightning.bregman import Chain, ReLU
from morphlightning.errors import NotSupportedError


# ---------------------------------------------------------------------------------------------------------- the blocks
def pre_activation(x: Tensor, c: Tensor, gamma: float, rho: float) -> Tensor:
    r"""The minimizer over z of :math:`\tfrac\gamma2(x - \max(z, 0))^2 + \tfrac\rho2(z - c)^2`, elementwise.

    The better one of the minimizers on both sides of 0.
    """
    above = ((gamma * x + rho * c) / (gamma + rho)).clamp_min(0)
    below = c.clamp_max(0)
    gain = gamma * ((x - above) ** 2 - x**2) + rho * ((above - c) ** 2 - (below - c) ** 2)
    return torch.where(gain < 0, above, below)


def activation(target: Tensor, s: Tensor, weights: Tensor, gamma: float, rho: float) -> Tensor:
    r"""The minimizer over x of :math:`\tfrac\rho2\|t - xW^T - b\|^2 + \tfrac\gamma2\|x - s\|^2`.

    Args:
        target: t, (samples, out).
        s: (samples, in).
        weights: [W, b], (out, in + 1).
        gamma: See above.
        rho: See above.
    """
    w, b = weights[:, :-1], weights[:, -1]
    matrix = rho * w.mT @ w
    matrix.diagonal().add_(gamma)
    right = rho * (target - b) @ w + gamma * s
    return torch.cholesky_solve(right.mT, torch.linalg.cholesky(matrix)).mT


def regression(
    gram: Tensor, moment: Tensor, rho: float, ridge: float, alpha: float = 0.0, old: Tensor | None = None
) -> Tensor:
    r"""The minimizer over V of :math:`\tfrac\rho2\|AV^T - T\|^2 + \tfrac{ridge}2\|V\|^2 + \tfrac\alpha2\|V - V'\|^2`.

    Args:
        gram: A^T A, (d, d).
        moment: T^T A, (out, d).
        rho: See above.
        ridge: See above.
        alpha: See above.
        old: V', (out, d); may be left out where alpha is 0.
    """
    matrix = rho * gram
    matrix.diagonal().add_(ridge + alpha)
    right = rho * moment if old is None else rho * moment + alpha * old
    return torch.cholesky_solve(right.mT, torch.linalg.cholesky(matrix)).mT


# --------------------------------------------------------------------------------------------------------- the methods
class Splitting:
    """What both methods share: a chain of linear layers with biases and ReLUs, split at a forward pass.

    Attributes:
        x: x_0, ..., x_{L-1}, the inputs of all layers.
        z: z_1, ..., z_L, their outputs.

    Raises:
        NotSupportedError: Another activation, or a layer without bias.
    """

    def __init__(self, chain: Chain, x: Tensor, y: Tensor, gamma: float, rho: float, ridge: Sequence[float]) -> None:
        hidden = {type(layer.activation) for layer in chain.layers[:-1]}
        if hidden - {ReLU} or not all(layer.affine.has_bias for layer in chain.layers):
            raise NotSupportedError("these methods are built for linear layers with biases and ReLUs between them")
        self.chain, self.y, self.gamma, self.rho = chain, y, gamma, rho
        self.ridge = [*ridge, *[ridge[-1]] * (len(chain) - len(ridge))]
        with torch.no_grad():
            self.z = chain.forward(x)
        self.x = [x, *(z.clamp_min(0) for z in self.z[:-1])]
        self._input_gram = chain.layers[0].affine.gram(x)[0]

    def weights(self, i: int) -> Tensor:
        """[W, b] of layer i, counted from 0."""
        return self.chain.layers[i].affine.weights()[0]

    def mapped(self, i: int) -> Tensor:
        """What layer i makes of its present input."""
        return self.chain.layers[i].affine(self.x[i])

    def regress(self, i: int, alpha: float) -> None:
        """Least squares for layer i with its present input and output."""
        affine = self.chain.layers[i].affine
        gram = affine.gram(self.x[i])[0] if i else self._input_gram
        moment = affine.moment(self.x[i], self.z[i])[0]
        affine.assign(regression(gram, moment, self.rho, self.ridge[i], alpha, self.weights(i))[None])


class BlockCoordinateDescent(Splitting):
    r"""Zeng et al.: each block of a penalty function in turn, from the output to the input.

    .. math:: \tfrac12\|x_L - y\|^2 + \sum_l \tfrac\gamma2\|x_l - \sigma_l(z_l)\|^2
              + \tfrac\rho2\|z_l - A_{l-1}V_l^T\|^2 + \tfrac{ridge_l}2\|V_l\|^2

    with :math:`\sigma_L` the identity. x_L, the hidden z and all V are held near their last values by
    :math:`\tfrac\alpha2\|\cdot - \cdot'\|^2`. The paper has :math:`\rho = \gamma`. Never increasing.

    - :math:`x_L = (y + \gamma z_L + \alpha x_L) / (1 + \gamma + \alpha)`,
      :math:`z_L = (\gamma x_L + \rho A_{L-1}V_L^T) / (\gamma + \rho)`, then V_L by :func:`regression`;
    - for l = L - 1, ..., 1: x_l by :func:`activation` with t = z_{l+1} and s = sigma(z_l), z_l by
      :func:`pre_activation` with the weight :math:`\rho + \alpha` at
      :math:`c = (\rho A_{l-1}V_l^T + \alpha z_l)/(\rho + \alpha)`, V_l by :func:`regression`.

    Args:
        chain: The network.
        x: Inputs.
        y: Targets.
        gamma: See above.
        rho: See above.
        ridge: One for each layer, of which the last counts for all that follow.
        alpha: See above.
    """

    def __init__(
        self,
        chain: Chain,
        x: Tensor,
        y: Tensor,
        gamma: float,
        rho: float,
        ridge: Sequence[float],
        alpha: float = 0.0,
    ) -> None:
        super().__init__(chain, x, y, gamma, rho, ridge)
        self.alpha, self.output = alpha, self.z[-1].clone()

    @torch.no_grad()
    def iterate(self) -> None:
        """One sweep."""
        gamma, rho, alpha = self.gamma, self.rho, self.alpha
        last = len(self.chain) - 1
        self.output = (self.y + gamma * self.z[last] + alpha * self.output) / (1 + gamma + alpha)
        self.z[last] = (gamma * self.output + rho * self.mapped(last)) / (gamma + rho)
        self.regress(last, alpha)
        for i in reversed(range(last)):
            z = self.z[i]
            self.x[i + 1] = activation(self.z[i + 1], z.clamp_min(0), self.weights(i + 1), gamma, rho)
            c = (rho * self.mapped(i) + alpha * z) / (rho + alpha)
            self.z[i] = pre_activation(self.x[i + 1], c, gamma, rho + alpha)
            self.regress(i, alpha)

    @torch.no_grad()
    def objective(self) -> Tensor:
        """The penalty function above."""
        total = (self.output - self.y).square().sum()
        outputs = [*(z.clamp_min(0) for z in self.z[:-1]), self.z[-1]]
        for i, (x, s) in enumerate(zip([*self.x[1:], self.output], outputs, strict=True)):
            total += self.gamma * (x - s).square().sum() + self.rho * (self.z[i] - self.mapped(i)).square().sum()
            total += self.ridge[i] * self.weights(i).square().sum()
        return total / 2


class PenaltyAdmm(Splitting):
    r"""Taylor et al.: quadratic penalties, with a multiplier for the output alone.

    .. math:: \tfrac12\|z_L - y\|^2 + \langle m, z_L\rangle + \tfrac\rho2\|z_L - A_{L-1}V_L^T\|^2
              + \sum_{l<L} \tfrac\gamma2\|x_l - \sigma(z_l)\|^2 + \tfrac\rho2\|z_l - A_{l-1}V_l^T\|^2

    The paper's penalties are without ½; here rho is twice its beta, and gamma twice its gamma.

    - for l = 1, ..., L - 1: V_l by :func:`regression`; x_l by :func:`activation` with t = z_{l+1} and s = sigma(z_l);
      z_l by :func:`pre_activation` at :math:`c = A_{l-1}V_l^T`;
    - V_L by :func:`regression`; :math:`z_L = (y - m + \rho A_{L-1}V_L^T) / (1 + \rho)`;
      :math:`m = m + \rho(z_L - A_{L-1}V_L^T)`, but not in the first ``warm`` iterations.

    Args:
        chain: The network.
        x: Inputs.
        y: Targets.
        gamma: See above.
        rho: See above.
        ridge: One for each layer, of which the last counts for all that follow.
        warm: See above.
    """

    def __init__(
        self,
        chain: Chain,
        x: Tensor,
        y: Tensor,
        gamma: float,
        rho: float,
        ridge: Sequence[float],
        warm: int = 5,
    ) -> None:
        super().__init__(chain, x, y, gamma, rho, ridge)
        self.warm, self.m = warm, torch.zeros_like(self.z[-1])

    @torch.no_grad()
    def iterate(self) -> None:
        """One sweep."""
        gamma, rho, last = self.gamma, self.rho, len(self.chain) - 1
        for i in range(last):
            self.regress(i, 0.0)
            self.x[i + 1] = activation(self.z[i + 1], self.z[i].clamp_min(0), self.weights(i + 1), gamma, rho)
            self.z[i] = pre_activation(self.x[i + 1], self.mapped(i), gamma, rho)
        self.regress(last, 0.0)
        mapped = self.mapped(last)
        self.z[last] = (self.y - self.m + rho * mapped) / (1 + rho)
        if self.warm:
            self.warm -= 1
        else:
            self.m += rho * (self.z[last] - mapped)
