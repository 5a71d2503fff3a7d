"""Learnable activations in place of those of any network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec
from morphlightning.splines.base import SplineModule

_BY_LAST_AXIS = (nn.Linear,)
_BY_SECOND_AXIS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_KEEPS_CHANNELS = (
    *(nn.Identity, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd),
    *(nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
)


@dataclass
class _Site:
    """An activation module, wherever it stands: one object may stand in several places."""

    module: nn.Module
    names: list[str] = field(default_factory=list)
    channels: set[tuple[int, int] | None] = field(default_factory=set)
    """Numbers of channels that it sees, each with their axis; None where that is not known."""
    like: Tensor | None = None
    """A tensor of the device and dtype that its parameters should have."""


def replace_activations(
    model: nn.Module,
    types: type[nn.Module] | tuple[type[nn.Module], ...],
    activation: Spec = "linear_spline",
    *,
    example_input: Any = None,
    **params: Any,
) -> list[str]:
    """Put a new activation in the place of every module of some types, in place.

    Each channel gets a function of its own where the number of channels is known: of inputs, if an example of them is
    given, else of a linear layer or convolution that goes before in an nn.Sequential. Elsewhere one function is shared
    by all channels. Splines start from the function that they replace, interpolated at their knots, unless ``init`` is
    among the parameters; so the network computes nearly the same before training, where the knots (``limit``) reach as
    far as what the activations are given. Mode, device and dtype are kept.
    Where one module stands in several places, its successor does. Do this before an optimizer is given the parameters.

    Args:
        model: Any network; functions such as F.relu that it calls are out of reach.
        types: Types to replace, such as nn.ReLU; pointwise functions without state to keep.
        activation: A component of kind ``activations``, by name, or with parameters as a mapping.
        example_input: What the model is called with, one tensor or a tuple of arguments; the model is called once, in
            evaluation mode and without gradients.
        **params: Parameters of the activation. ``channels`` and ``channel_dim`` overrule what is found.

    Returns:
        Names of the modules that were replaced.

    Raises:
        ConfigError: There is no module of these types, the model is one itself, one is not pointwise, or one sees
            different numbers of channels in different places.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> replace_activations(net, nn.ReLU, "linear_spline", knots=21, constraint="lipschitz")
        ['1']
        >>> net[1].values.shape
        torch.Size([8, 21])
    """
    if isinstance(model, types):
        raise ConfigError(f"the model is a {type(model).__name__} itself: build the new activation in its place")
    sites = _sites(model, types)
    if not sites:
        wanted = ", ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))
        there = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ConfigError(f"no module of type {wanted} to replace in {type(model).__name__}, which is made of {there}")
    if "channels" not in params:
        _look_back(model, sites) if example_input is None else _probe(model, sites, example_input)
    replacements = [(site, _build(site, activation, params, model)) for site in sites]
    for site, new in replacements:
        for name in site.names:
            model.set_submodule(name, new)
    return [name for site in sites for name in site.names]


def _sites(model: nn.Module, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[_Site]:
    found: dict[int, _Site] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, types):
            found.setdefault(id(module), _Site(module)).names.append(name)
    return list(found.values())


def _build(site: _Site, activation: Spec, params: dict[str, Any], model: nn.Module) -> nn.Module:
    known = sorted(place for place in site.channels if place is not None)
    if len(known) < len(site.channels):  # one function for all where there is a place that nothing is known of
        known = []
    if len(known) > 1:
        raise ConfigError(
            f"{' = '.join(site.names)} is used in places with different channels "
            f"({', '.join(f'{count} on axis {axis}' for count, axis in known)}): give each place a module of its own, "
            "or pass channels=None for one function for all"
        )
    context = {"channels": known[0][0], "channel_dim": known[0][1]} if known else {}
    spec = {"name": activation} if isinstance(activation, str) else dict(activation)
    new: nn.Module = registry.build("activations", spec | params, **context)
    if isinstance(new, SplineModule) and "init" not in spec | params:
        new.fit_(_function(site.module, site.names[0], new.splines))
    like = next(site.module.parameters(), site.like)
    like = next(model.parameters(), None) if like is None else like
    return new.to(like).train(site.module.training) if like is not None else new.train(site.module.training)


def _function(module: nn.Module, name: str, splines: int) -> Callable[[Tensor], Tensor]:
    """What it computes of knots (splines, K)."""
    old = copy.deepcopy(module).eval().to("cpu", torch.float64)

    def call(knots: Tensor) -> Tensor:
        if isinstance(old, nn.PReLU):
            slopes = old.weight.expand(splines) if len(old.weight) == 1 else old.weight.view(splines, -1).mean(1)
            return torch.where(knots > 0, knots, slopes[:, None] * knots)
        y: Tensor = old(knots.to(torch.float64, copy=True))
        return y

    probe = torch.linspace(-3, 3, 8, dtype=torch.float64).expand(splines, -1)
    try:
        pointwise = torch.equal(call(probe)[:, :2], call(probe[:, :2]))
    except RuntimeError:  # an axis of another size does not suit it
        pointwise = False
    if not pointwise:
        raise ConfigError(f"{name} is a {type(module).__name__}, which is not pointwise: it cannot be replaced")
    return call


# --------------------------------------------------------------------------------------------- channels, two ways
def _probe(model: nn.Module, sites: list[_Site], example: Any) -> None:
    """Call the model on the example and note what each activation is given, and by what kind of layer."""
    by_last_axis: list[Tensor] = []
    by_module = {id(site.module): site for site in sites}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        passed_on = isinstance(module, _KEEPS_CHANNELS) and any(x is y for x in args for y in by_last_axis)
        if isinstance(module, _BY_LAST_AXIS) or passed_on:
            by_last_axis[:] = [output]

    def before(module: nn.Module, args: Any) -> None:
        (x, *_), site = args, by_module[id(module)]
        axis = -1 if x.ndim < 2 or (x.ndim > 2 and any(x is y for y in by_last_axis)) else 1
        site.channels.add((x.shape[axis], axis))
        site.like = x

    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(after) for module in model.modules()]
    hooks += [site.module.register_forward_pre_hook(before) for site in sites]
    try:
        with torch.no_grad():
            model.eval()(*example if isinstance(example, tuple) else (example,))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _look_back(model: nn.Module, sites: list[_Site]) -> None:
    """Note what layers go before each activation in an nn.Sequential."""
    for site in sites:
        for name in site.names:
            parent, _, own = name.rpartition(".")
            chain = model.get_submodule(parent)
            layer = _layer_before(chain, own) if isinstance(chain, nn.Sequential) else None
            site.channels.add(None if layer is None else _channels(layer))
            site.like = next(layer.parameters(), None) if layer is not None else None


def _layer_before(chain: nn.Sequential, name: str) -> nn.Module | None:
    before = None
    for own, module in chain._modules.items():  # named_children leaves repeated ones out
        if own == name:
            return before
        if isinstance(module, _BY_LAST_AXIS + _BY_SECOND_AXIS):
            before = module
        elif not isinstance(module, _KEEPS_CHANNELS):
            before = None
    return None


def _channels(layer: nn.Module) -> tuple[int, int]:
    last = isinstance(layer, nn.Linear)
    return int(getattr(layer, "out_features" if last else "out_channels")), -1 if last else 1
