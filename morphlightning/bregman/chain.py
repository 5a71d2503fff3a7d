"""A network as lifted training sees it: affine layers and proximal activations in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from morphlightning.bregman.activations import Identity, ProximalActivation
from morphlightning.bregman.affine import Affine, affine, paddings
from morphlightning.bregman.proximal import proximal
from morphlightning.errors import NotSupportedError
from morphlightning.layers import MorphLayer, MorphUnpool1d, MorphUnpool2d, MorphUnpool3d

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_MAX_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
_POOLS = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._LPPoolNd)
_UNPOOLS = (nn.modules.pooling._MaxUnpoolNd, MorphUnpool1d, MorphUnpool2d, MorphUnpool3d)
_OTHERS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.modules.dropout._DropoutNd,), "random at each pass, so that no auxiliary variable stays right; leave it out"),
    (_NORMS, "couples samples or features beyond an affine map; leave it out, or fold it into the layer before"),
    ((nn.MultiheadAttention, nn.TransformerEncoderLayer), "attention is no affine map with an activation"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers use their weights many times"),
    (_MAX_POOLS, "max-pooling is no pointwise activation; use a convolution with a stride"),
    (_POOLS, "pooling has no weights to solve for; use a convolution with a stride"),
    (_UNPOOLS, "unpooling needs where the values came from, which no affine map of its input knows; leave it out"),
    ((nn.Sequential,), "it overrides nn.Sequential.forward, so that its modules do not say what it computes"),
    ((nn.modules.conv._ConvNd, nn.Bilinear), "the affine layers are nn.Linear and nn.Conv2d"),
)


class Layer(NamedTuple):
    """u = affine(x), then x = activation(u); the last layer's activation is the identity."""

    affine: Affine
    activation: ProximalActivation


class Chain:
    """The affine layers and activations of an ``nn.Sequential``, in order; the network itself stays as it is.

    Flatten and Unflatten belong to the affine layer after them; those at the end to the target's shape. Two affine
    layers without an activation between them have the identity there. Sequentials may be nested.

    Args:
        network: An ``nn.Sequential`` of nn.Linear, nn.Conv2d, proximal activations, nn.Flatten and nn.Unflatten that
            ends with an affine layer.

    Attributes:
        layers: The layers in order.
        network: The network.

    Raises:
        NotSupportedError: Every layer that cannot be lifted, with its reason.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        reader = _Reader()
        if isinstance(network, nn.Sequential | nn.Linear | nn.Conv2d):
            for name, module in _leaves(network):
                reader.read(name, module)
        else:
            reader.faults.append(f"the network ({type(network).__name__}): expected an nn.Sequential")
        self.layers = reader.finish()
        if reader.faults:
            raise NotSupportedError(
                "this network cannot be lifted into affine layers and proximal activations:\n  - "
                + "\n  - ".join(reader.faults)
            )

    def __len__(self) -> int:
        return len(self.layers)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the affine layers: all that lifted training changes."""
        for layer in self.layers:
            yield from layer.affine.module.parameters()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pre-activations u_1, ..., u_L of a forward pass."""
        pre = []
        for layer in self.layers:
            pre.append(layer.affine(x))
            x = layer.activation(pre[-1])
        return pre


class _Reader:
    """Takes the modules of a network one after the other and keeps every fault."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._layers: list[Layer] = []
        self._reshapes: list[nn.Module] = []
        self._affine: Affine | None = None  # None also for one with a fault
        self._open = False  # whether an affine layer waits for its activation
        self._last = ""  # the activation that came last, if no affine layer came after it
        self._owners: dict[int, str] = {}  # of parameters, by their id

    def read(self, name: str, module: nn.Module) -> None:
        """Take the next module."""
        if isinstance(module, nn.Flatten | nn.Unflatten):
            self._reshapes.append(module)
            if 0 in (getattr(module, "start_dim", None), getattr(module, "dim", None)):
                self._blame(name, module, "it reshapes the axis of the samples; reshape what comes after it alone")
        elif isinstance(module, nn.Linear | nn.Conv2d):
            self._read_affine(name, module)
        else:
            self._read_activation(name, module)

    def finish(self) -> list[Layer]:
        """The layers."""
        if self._open:
            self._close(Identity())
        elif self._last:
            self.faults.append(
                f"{self._last} comes last: leave it out and train with BregmanLoss(activation), which compares its "
                "output with the target without differentiating it"
            )
        elif not self.faults:
            self.faults.append("there is no nn.Linear and no nn.Conv2d")
        return self._layers

    def _close(self, activation: ProximalActivation) -> None:
        if self._affine is not None:
            self._layers.append(Layer(self._affine, activation))
        self._affine, self._open = None, False

    def _read_affine(self, name: str, module: nn.Linear | nn.Conv2d) -> None:
        self._close(Identity())
        owner = next((self._owners[id(each)] for each in module.parameters() if id(each) in self._owners), None)
        if fault := _fault_of_affine(module, owner):
            self._blame(name, module, fault)
        else:
            self._affine = affine(name, module, self._reshapes)
        self._owners |= {id(parameter): name for parameter in module.parameters()}
        self._open, self._reshapes, self._last = True, [], ""

    def _read_activation(self, name: str, module: nn.Module) -> None:
        if fault := _fault_of_kind(module):
            self._blame(name, module, fault)
            return
        try:
            activation = proximal(module)
        except NotSupportedError as error:
            self._blame(name, module, str(error))
            return
        if not self._open and not isinstance(module, nn.Identity):
            self._blame(name, module, "an activation needs an affine layer before it")
        elif self._reshapes and not isinstance(module, nn.Identity):
            self._blame(name, module, "put the reshape after the activation")
        elif not isinstance(module, nn.Identity):
            self._close(activation)
            self._last = f"{name} ({type(module).__name__})"

    def _blame(self, name: str, module: nn.Module, fault: str) -> None:
        self.faults.append(f"{name} ({type(module).__name__}): {fault}")


def _leaves(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested Sequentials in order."""
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        for name, child in network._modules.items():  # named_children leaves out a module that stands there again
            if child is not None:
                yield from _leaves(child, f"{prefix}{name}.")
    else:
        yield prefix.rstrip(".") or "the network", network


def _fault_of_affine(module: nn.Linear | nn.Conv2d, owner: str | None) -> str | None:
    if owner is not None:
        return f"it shares its weights with {owner}; give each layer weights of its own"
    if type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return "it overrides forward, so that it may be no affine map; use nn.Linear or nn.Conv2d itself"
    if any(is_lazy(parameter) for parameter in module.parameters()):
        return "its shape is not known yet; run a batch through the network first"
    computed = not all(isinstance(each, nn.Parameter | None) for each in (module.weight, module.bias))
    if computed or is_parametrized(module):  # hooks of weight_norm, spectral_norm and pruning; parametrizations
        return "its weights are computed from others (torch.nn.utils), so that they cannot be solved for"
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return "its parameters are frozen (requires_grad=False), but lifted training solves for those of every layer"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding_mode={module.padding_mode!r}, expected 'zeros'"
        try:
            paddings(module)
        except ValueError as error:
            return str(error)
    return None


def _fault_of_kind(module: nn.Module) -> str | None:
    """Why a module is neither affine nor an activation; None where that is still to be seen."""
    if any(isinstance(part, MorphLayer) for part in module.modules()):
        return "a max-plus layer is no affine map; train it by its own calculus, optimizer='morph_sgd'"
    for kinds, fault in _OTHERS:
        if isinstance(module, kinds):
            return fault
    return None
