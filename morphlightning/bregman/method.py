"""What the lifted methods share: a batch on its way through an iteration, sums over samples, and the monitors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from morphlightning.bregman.affine import Dense
from morphlightning.bregman.chain import Chain
from morphlightning.bregman.losses import OutputLoss
from morphlightning.bregman.normal_equations import (
    factor,
    from_triangle,
    full_precision,
    pack,
    solving_dtype,
    triangle,
    unpack,
)
from morphlightning.errors import ConfigError, NonFiniteError


class Moments(NamedTuple):
    """Sums over samples of one layer: gram (groups, d, d) and moment (groups, out / groups, d)."""

    gram: Tensor
    moment: Tensor


Samples = dict[str, Tensor]
"""The auxiliary variables of some samples by name, such as ``"x1"``: the samples along the first axis."""

Reduce = Callable[[Tensor], Tensor]
PSEUDOINVERSE_UP_TO = 4
"""Samples for each input up to which the pseudoinverse is kept; it has the size of the inputs."""


class Pass:
    """A batch during an iteration: x_0, ..., x_{L-1}, and u_l = affine_l(x_{l-1}), computed when it is asked for.

    Lists count from 0: ``u(i)`` belongs to the layer i, ``x[i]`` is its input, ``x[0]`` that of the network. The others
    are auxiliary variables, ``"x1"`` and so on, and what becomes of them is kept among these.
    """

    def __init__(self, chain: Chain, samples: Samples, x: Tensor) -> None:
        self._chain, self._samples = chain, samples
        self.x = [x, *(samples[f"x{i}"] for i in range(1, len(chain)))]
        self._u: list[Tensor | None] = [None] * len(chain)

    def u(self, i: int) -> Tensor:
        """The pre-activation of layer i by the present weights and its present input."""
        u = self._u[i]
        if u is None:
            u = self._u[i] = self._chain.layers[i].affine(self.x[i])
        return u

    def set_x(self, i: int, x: Tensor) -> None:
        """Replace the input of layer i."""
        self.x[i], self._u[i] = x, None
        self._samples[f"x{i}"] = x

    def move_x(self, i: int, pulled: Tensor, mu: float, inverse: float, mirrors: bool) -> None:
        """A proximal step of the input of layer i, with 1/t = ``inverse`` and d = 1/t + mu; overwrites ``pulled``.

        x <- prox_{(mu/d) Psi}((x/t + pulled) / d), or in its mirror form p <- (p/t + pulled) / d, x <- sigma(p).
        """
        activation, d = self._chain.layers[i - 1].activation, inverse + mu
        if mirrors:
            self.set_x(i, activation(self._samples[f"p{i}"].mul_(inverse).add_(pulled).div_(d)))
        else:
            self.set_x(i, activation.prox(pulled.add_(self.x[i], alpha=inverse).div_(d), mu / d))

    def forward(self) -> Tensor:
        """The network's output, from u_1 on."""
        u = self.u(0)
        for before, layer in zip(self._chain.layers, self._chain.layers[1:], strict=False):
            u = layer.affine(before.activation(u))
        return u


class Method(ABC):
    """A method that trains the affine layers of a chain without differentiating its activations.

    ``piece`` updates the auxiliary variables of a batch and adds the batch's sums to those of the iteration; ``update``
    reduces the sums over processes, solves for all weights and writes them. ``iterate`` is both.

    Args:
        chain: The network.
        loss: The loss of its output.
        mu: Weight of the layers' Bregman losses, > 0.
        ridge: lambda_l of lambda_l/2 ||V_l||^2, >= 0, in the units of the sum of the losses over all samples: one for
            all layers, or one for each from the first on, of which the last counts for all that follow.

    Attributes:
        size: Samples over all processes, for the methods that need it.
        iteration: Number of updates done.
        reduce: Sum of a tensor over all processes.
        monitored: Whether the current iteration takes down ``figures``; set by whoever iterates.
        figures: What was taken down last: ``loss`` (the mean loss of the network's own forward pass, before the
            update), the gaps ||x_l - sigma(z_l)|| of layers, root mean squares over samples, and with a full batch
            ``objective`` and its relative change since it was taken down before.

    Raises:
        ConfigError: A setting out of its range.
    """

    persistent: ClassVar[bool] = True  # auxiliary variables live on from iteration to iteration
    fixed_input: ClassVar[bool] = True  # the network's input is the same in every iteration
    full_batch: ClassVar[bool] = True  # an iteration needs all samples, in one piece or in several

    def __init__(self, chain: Chain, loss: OutputLoss, mu: float, ridge: float | Sequence[float]) -> None:
        check_positive(type(self).__name__, mu=mu)
        self.chain, self.loss, self.mu = chain, loss, mu
        self.ridge = per_layer(type(self).__name__, "ridge", ridge, len(chain), at_least_zero=True)
        self.size, self.iteration, self.monitored = 0, 0, False
        self.reduce: Reduce = lambda sums: sums
        self.figures: dict[str, Tensor] = {}
        self._norms: list[Tensor | None] = [None] * len(chain)
        self._sums: dict[str, Tensor] = {}
        self.count = 0
        self.input_gram: Tensor | None = None
        self._pseudoinverse: Tensor | None = None
        self._input_factor: tuple[Tensor, float, Tensor] | None = None

    # ------------------------------------------------------------------------------------------------ an iteration
    def start(self, x: Tensor, y: Tensor) -> Samples:
        """Auxiliary variables of samples that are new, by a forward pass."""
        return {}

    @torch.no_grad()
    def iterate(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """One iteration over all samples at once: their auxiliary variables and the weights change in place.

        Args:
            samples: What ``start`` gave, as earlier iterations left it.
            x: Inputs of the network; where ``fixed_input`` is set, the same in each iteration, in the same order.
            y: Targets of the loss.
        """
        if self.fixed_input and self.input_gram is None:
            self._take_input(x.to(self.dtype).to(solving_dtype(self.dtype)))
        self.piece(samples, x, y)
        self.update()

    @abstractmethod
    def piece(self, samples: Samples, x: Tensor, y: Tensor) -> None:
        """Update the auxiliary variables of a batch and add up its sums."""

    @abstractmethod
    def solve(self, moments: Sequence[Moments]) -> list[Tensor]:
        """The new weights of all layers, from the sums over all samples."""

    @torch.no_grad()
    def update(self) -> None:
        """Reduce the sums, solve for the weights and write them.

        Raises:
            NonFiniteError: A solution that is not finite; the weights stay as they were.
        """
        sums, self._sums = self._sums, {}
        with full_precision(self.device):
            if figures := {name: sums.pop(name) for name in list(sums) if name.startswith("figure ")}:
                self._take_figures(figures)
            reduced = {name: self.reduce(packed) for name, packed in sorted(sums.items())}
            weights = self._solve_sums(reduced)
        self._write(weights)

    def _solve_sums(self, reduced: Mapping[str, Tensor]) -> list[Tensor]:
        """The new weights, also where a pass did not hold all samples.

        Then the input's Gram matrix is that of this pass alone. One of all samples does not fit the moments: that is a
        pass whose sums were lost in part, when the run was interrupted, and the weights stay.
        """
        known, moments = self.input_gram is not None, self._unpacked(reduced)
        if not self.fixed_input or self.count >= self.size:
            return self.solve(moments)
        weights = [self.weights(i) for i in range(len(self.chain))] if known else self.solve(moments)
        self.input_gram = self.input_gram if known else None
        return weights

    def _write(self, weights: Sequence[Tensor]) -> None:
        if not torch.stack([new.sum() for new in weights]).isfinite().all():  # NaN and inf stay in a sum
            raise NonFiniteError(
                f"iteration {self.iteration}: the solution of the least-squares problems is not finite. Look for NaN "
                "or inf in the inputs, raise ridge, or train in float64. The weights are those before this step"
            )
        for layer, new in zip(self.chain.layers, weights, strict=True):
            layer.affine.assign(new)
        self._norms = [None] * len(self.chain)
        self.iteration += 1

    # ---------------------------------------------------------------------------------------------- sums over samples
    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of auxiliary variables."""
        return next(self.chain.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.chain.parameters()).device

    def add(self, name: str, parts: Sequence[Tensor]) -> None:
        """Add a batch's share to a sum of the iteration."""
        packed = pack(parts)
        self._sums[name] = self._sums[name].add_(packed) if name in self._sums else packed

    def add_moments(self, x: Sequence[Tensor], t: Sequence[Tensor], sign: int = 1) -> None:
        """Add the Gram matrices of the layers' inputs x and their moments with the targets t, or take them away.

        Where the network's input is the same in every iteration, its Gram matrix is summed but once, by itself.
        """
        exact = solving_dtype(self.dtype)
        parts = [x[0].new_full((1,), sign * len(x[0]), dtype=exact)]
        with full_precision(self.device):
            for i, (layer, inputs, target) in enumerate(zip(self.chain.layers, x, t, strict=True)):
                inputs, target = inputs.to(exact), target.to(exact)
                if i or self.input_gram is None:
                    gram = sign * triangle(layer.affine.gram(inputs))
                    self.add("input_gram", [gram]) if self.fixed_input and not i else parts.append(gram)
                if not i and self._pseudoinverse is not None:
                    parts.append(target.flatten(0, -2).mT @ self._pseudoinverse)
                else:
                    moment = layer.affine.moment(inputs, target)
                    parts.append(moment if sign > 0 else -moment)
        self.add("moments", parts)

    def _take_input(self, x: Tensor) -> None:
        """Sum the Gram matrix of all inputs, and solve for the pseudoinverse once, where it is not much larger than x.

        Not where x are but some of the samples, for they may be others in the next iteration.

        It saves the solves of the first layer: with as many samples as inputs these cost more than the products with x.
        """
        first = self.chain.layers[0].affine
        with full_precision(self.device):
            packed = self.reduce(pack([x.new_full((1,), len(x)), triangle(first.gram(x))]))
            if packed[0] < self.size:
                return
            self.input_gram = from_triangle(packed[1:].view(first.shape[0], -1))
            ridge = self.ridge_of(0)
            if ridge is not None and isinstance(first, Dense) and packed[0] <= PSEUDOINVERSE_UP_TO * first.shape[-1]:
                lower = self._cholesky(0, self.input_gram, ridge)
                self._pseudoinverse = torch.cholesky_solve(first.rows(x).mT, lower[0]).mT.contiguous()

    def ridge_of(self, i: int) -> float | None:
        """What ``regress`` of layer i is given in every iteration, if there is such a ridge."""
        return None

    def _unpacked(self, reduced: Mapping[str, Tensor]) -> list[Moments]:
        """The moments of all layers; sets the number of samples behind them, and a fixed input's Gram matrix."""
        if "input_gram" in reduced:
            groups, *_ = self.chain.layers[0].affine.shape
            self.input_gram = from_triangle(reduced["input_gram"].view(groups, -1))
        shapes = [torch.Size((1,))]
        for i, layer in enumerate(self.chain.layers):
            groups, out, size = layer.affine.shape
            shapes += [torch.Size((groups, size * (size + 1) // 2))] if i or self.input_gram is None else []
            shapes += [torch.Size((groups, out, size))]
        count, *parts = unpack(reduced["moments"], shapes)
        self.count = int(count)
        rest, moments = iter(parts), []
        for i in range(len(self.chain)):
            gram = self.input_gram if not i and self.input_gram is not None else from_triangle(next(rest))
            moments.append(Moments(gram, next(rest)))
        return moments

    def regress(self, i: int, moments: Moments, ridge: float) -> Tensor:
        """V with V (gram + ridge I) = moment of layer i."""
        if not i and self._pseudoinverse is not None:
            return moments.moment
        lower = self._cholesky(i, moments.gram, ridge)
        half = torch.linalg.solve_triangular(lower.mT, moments.moment, upper=True, left=False)
        new: Tensor = torch.linalg.solve_triangular(lower, half, upper=False, left=False)
        return new

    def _cholesky(self, i: int, gram: Tensor, ridge: float) -> Tensor:
        """The factor of gram + ridge I of layer i; that of the input is kept as long as its Gram matrix is."""
        if i:
            return factor(gram, ridge, self.chain.layers[i].affine.name)
        if self._input_factor is None or self._input_factor[0] is not gram or self._input_factor[1] != ridge:
            self._input_factor = gram, ridge, factor(gram, ridge, self.chain.layers[0].affine.name)
        return self._input_factor[2]

    def weights(self, i: int) -> Tensor:
        """The weights of layer i in the precision of the solves."""
        return self.chain.layers[i].affine.weights().to(solving_dtype(self.dtype))

    def squared_norm(self, i: int, x: Tensor) -> Tensor:
        """||W||^2 of layer i by its present weights, equal on all processes."""
        norm = self._norms[i]
        if norm is None:
            with full_precision(self.device):
                norm = self.chain.layers[i].affine.squared_norm(x)
            norm = self._norms[i] = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return norm

    # ------------------------------------------------------------------------------------------------------- monitors
    def take_down(self, batch: Pass, z: Sequence[Tensor], y: Tensor) -> None:
        """Add a batch's share to the figures of a monitored iteration.

        Args:
            batch: The batch before the iteration changes it.
            z: What the lifted objective compares the layers' outputs with, by layer.
            y: The target in the shape of the output.
        """
        objective = self.loss.value(z[-1], y).sum()
        for i, layer in enumerate(self.chain.layers[:-1]):
            objective = objective + self.mu * layer.activation.loss(batch.x[i + 1], z[i]).sum()
            if self.persistent:  # else the gaps are 0 before an iteration
                self.note(f"gap/{layer.affine.name}", layer.activation.gradient(batch.x[i + 1], z[i]).square().sum())
        self.note("objective", objective)
        self.note("loss", self.loss.value(batch.forward(), y).sum())
        self.note("samples", objective.new_tensor(len(y)))

    def note(self, name: str, value: Tensor) -> None:
        """Add a scalar to a figure of the iteration."""
        self.add(f"figure {name}", [value.detach().double()])

    def _take_figures(self, sums: dict[str, Tensor]) -> None:
        """Reduce the figures, all at once."""
        names = sorted(sums)
        found = dict(zip(names, self.reduce(torch.cat([sums[name] for name in names])).unbind(), strict=True))
        found = {name.removeprefix("figure "): value for name, value in found.items()}
        samples, objective = found.pop("samples"), found.pop("objective")
        figures = {"loss": found.pop("loss") / samples}
        if self.full_batch:
            ridges = [0.5 * ridge * self.weights(i).double().square().sum() for i, ridge in enumerate(self.ridge)]
            figures["objective"] = objective + torch.stack(ridges).sum()
        if earlier := self.figures.get("objective"):
            figures["objective_change"] = figures["objective"] / earlier - 1
        figures |= {name: (found.pop(name) / samples).sqrt() for name in list(found) if name.startswith("gap/")}
        self.figures = figures | self.finish_figures(found, samples)

    def finish_figures(self, sums: Mapping[str, Tensor], samples: Tensor) -> dict[str, Tensor]:
        """Figures of a method's own, of its reduced sums."""
        return dict(sums)

    # ---------------------------------------------------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """The state that is equal on all processes."""
        summed = self.fixed_input and self._pseudoinverse is None  # else it is taken anew, from the same inputs
        return {
            "iteration": self.iteration,
            "size": self.size,
            "input_gram": self.input_gram if summed else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.iteration, self.size = state["iteration"], state["size"]
        self._norms = [None] * len(self.chain)
        gram = state["input_gram"]
        self.input_gram, self._pseudoinverse = gram if gram is None else gram.to(self.device), None

    def begins_anew(self, known: int) -> bool:
        """Whether all auxiliary variables have to begin anew when a run resumes with those of so many samples."""
        return False

    def partial_sums(self) -> dict[str, Tensor]:
        """What this process has added up of an unfinished iteration."""
        return {name: packed.clone() for name, packed in self._sums.items()}

    def load_partial_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Go on in the middle of an iteration."""
        self._sums = {name: packed.to(self.device, copy=True) for name, packed in sums.items()}


def per_layer(where: str, name: str, given: float | Sequence[float], layers: int, at_least_zero: bool) -> list[float]:
    """One value for each layer: one given counts for all, of several the last for all layers that follow.

    Raises:
        ConfigError: Another number of values, or values out of range.
    """
    values = [float(given)] if isinstance(given, int | float) else [float(value) for value in given]
    if not values or len(values) > max(layers, 2):  # a pair, first and others, fits every network
        raise ConfigError(f"{where}: {name} has {len(values)} values, the network {layers} affine layers")
    values = (values + values[-1:] * layers)[:layers]
    if not all(value >= 0 if at_least_zero else value > 0 for value in values):
        raise ConfigError(f"{where}: {name} must be {'>= 0' if at_least_zero else '> 0'}, got {given}")
    return values


def check_positive(where: str, **values: float) -> None:
    """Raise ConfigError unless all are > 0."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{where}: {name} must be > 0, got {value}")


def check_below_two(where: str, **values: float) -> None:
    """Raise ConfigError unless all lie in (0, 2), where the steps are known to descend."""
    for name, value in values.items():
        if not 0 < value < 2:
            raise ConfigError(f"{where}: {name} must lie in (0, 2), where the step descends, got {value}")
