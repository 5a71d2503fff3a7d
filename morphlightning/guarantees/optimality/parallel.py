"""Sums of subnetworks of one kind, stacked so that an operation on all of them is one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.guarantees.optimality.homogeneity import Homogeneous, Parameters
from morphlightning.guarantees.optimality.penalties import rows
from morphlightning.guarantees.optimality.subnetworks import scaled


class ParallelSum(nn.Module):
    r"""The sum of r subnetworks :math:`\Phi(x) = \sum_{i \le r} \phi(x; K_i)`, its slices.

    Each parameter tensor holds ``capacity`` slices in its leading axis, of which the first r count; the others are 0,
    are not computed and get the gradient 0. So slices come (:meth:`append`) and go (:meth:`arrange`) while optimizers
    and processes go on with the same tensors. r is saved with the weights; a state of another capacity is loaded by
    taking that capacity, so load it before making an optimizer.

    Args:
        subnetwork: phi, with its degree p and penalty theta.
        count: r at the start.
        capacity: The largest r; None for ``count``.
        start: theta of each slice at the start, in random directions.
        generator: Source of randomness.

    Raises:
        ConfigError: No subnetwork, or sizes that cannot be.

    Shapes: x (samples, *subnetwork.in_shape) to the output of the subnetwork.
    """

    active: Tensor

    def __init__(
        self,
        subnetwork: Homogeneous,
        count: int,
        capacity: int | None = None,
        start: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        capacity = count if capacity is None else capacity
        if not isinstance(subnetwork, Homogeneous):
            raise ConfigError(
                f"ParallelSum: {type(subnetwork).__name__} is no Homogeneous subnetwork; wrap a module in "
                "HomogeneousNetwork(module, in_shape, degree)"
            )
        if not (0 <= count <= capacity and capacity >= 1 and start > 0):
            raise ConfigError(
                f"ParallelSum: count={count}, capacity={capacity}, start={start}; expected 0 <= count <= capacity, "
                "1 <= capacity and start > 0"
            )
        self.subnetwork = subnetwork
        drawn = subnetwork.random(capacity, generator)
        factors = torch.where(torch.arange(capacity) < count, start ** (1 / subnetwork.degree), 0.0)
        self.slices = nn.ParameterDict(scaled(drawn, factors))
        self.register_buffer("active", torch.tensor(count))
        self._count = count

    @property
    def count(self) -> int:
        """r, the number of slices."""
        return self._count

    @property
    def capacity(self) -> int:
        """The largest r."""
        return len(next(iter(self.slices.values())))

    @property
    def degree(self) -> int:
        """The degree p of the subnetworks."""
        return self.subnetwork.degree

    def parameters_of_slices(self) -> dict[str, Tensor]:
        """The parameters K_1, ..., K_r, stacked; views of the parameters."""
        return {name: tensor[: self._count] for name, tensor in self.slices.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Sum over slices."""
        kept = max(self._count, 1)  # of none a first one, which is 0, for the shape, and a gradient of 0 for DDP
        outputs = self.subnetwork.phi(x, {name: tensor[:kept] for name, tensor in self.slices.items()})
        total: Tensor = outputs.sum(0) if self._count else 0 * outputs[0]
        return total

    def penalties(self) -> Tensor:
        """The theta of each slice, (r,)."""
        return self.subnetwork.theta(self.parameters_of_slices())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The Euclidean norm of each slice, (r,)."""
        squares = [rows(tensor).square().sum(1) for tensor in self.parameters_of_slices().values()]
        return torch.stack(squares).sum(0).sqrt()

    @torch.no_grad()
    def append(self, direction: Parameters) -> int:
        """Take one more slice.

        Args:
            direction: Its parameters, not stacked.

        Returns:
            Its index.

        Raises:
            ConfigError: There is no room.
        """
        if self._count == self.capacity:
            raise ConfigError(
                f"ParallelSum: all {self.capacity} slices are taken; build it with a larger capacity, or prune"
            )
        for name, tensor in self.slices.items():
            tensor[self._count] = direction[name].to(tensor)
        self._set_count(self._count + 1)
        return self._count - 1

    @torch.no_grad()
    def arrange(self, order: Sequence[int]) -> None:
        """Keep the slices with these indices, in this order, and drop the others."""
        for tensor in self.slices.values():
            arrange_rows_(tensor, order)
        self._set_count(len(order))

    def _set_count(self, count: int) -> None:
        self._count = count
        self.active.fill_(count)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._count = int(self.active)
        for name, tensor in self.slices.items():  # children are loaded after their parents
            saved = state_dict.get(f"{prefix}slices.{name}")
            if saved is not None and len(saved) != len(tensor) and saved.shape[1:] == tensor.shape[1:]:
                self.slices[name] = nn.Parameter(tensor.new_zeros(saved.shape), requires_grad=tensor.requires_grad)

    def extra_repr(self) -> str:
        """Subnetwork and numbers of slices."""
        return f"{self.subnetwork}, count={self.count}, capacity={self.capacity}"


@runtime_checkable
class SlicePenalty(Protocol):
    """A regularizer that adds weight times the sum of the penalties of a parallel sum's slices."""

    @property
    def weight(self) -> float:
        """The factor lambda."""
        ...

    def check(self, network: ParallelSum) -> None:
        """Raise ConfigError where the penalty is not that of the slices."""
        ...


def arrange_rows_(tensor: Tensor, order: Sequence[int]) -> None:
    """Let the rows of a tensor be those of ``order``, and 0 behind them, in place."""
    kept = tensor[list(order)].clone()
    tensor.zero_()
    tensor[: len(order)] = kept


def arrange_optimizer_(optimizer: torch.optim.Optimizer, network: ParallelSum, order: Sequence[int]) -> None:
    """Rearrange an optimizer's state as the slices of a network; rows that are not in ``order`` begin anew, with 0.

    It concerns each tensor of the state with the shape of a parameter: momenta, but no step counts.
    """
    for tensor in network.slices.values():
        for state in optimizer.state.get(tensor, {}).values():
            if isinstance(state, Tensor) and state.shape == tensor.shape:
                arrange_rows_(state, order)
