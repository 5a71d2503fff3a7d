"""Which role each parameter plays: optimizers treat roles, not names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import ROLES, Group, Spec, TorchOptimizer
from morphlightning.layers import MorphLayer, sites

_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_NORM = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(module: nn.Module) -> list[Group]:
    """The trainable parameters of a module by role; roles without parameters are left out.

    Weight decay makes sense for the weights of linear and convolution layers and for what is not known better. It
    does not for max-plus weights (0 wins, -inf vanishes), norms, biases and activations. A module may say
    otherwise in an attribute ``roles``, a mapping from its parameters' names.
    """
    groups = {role: Group(role, [], [], decay=role in ("linear", "other")) for role in ROLES}
    seen: set[int] = set()
    for path, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            group = groups[_role(child, name)]
            group.names.append(f"{path}.{name}".lstrip("."))
            group.params.append(parameter)
    trained = {id(p) for p in groups["morph"].params}
    groups["morph"] = groups["morph"]._replace(sites=tuple(s for _, s in sites(module) if id(s.weight) in trained))
    return [group for group in groups.values() if group.params]


def build_optimizer(module: nn.Module, optimizer: Spec) -> torch.optim.Optimizer:
    """The torch optimizer of a component of kind optimizers over a module, whose layers record what it reads.

    morphlightning's models do this themselves. Elsewhere call ``apply_update_heuristics(module, optimizer)`` between
    backward and step.

    Args:
        module: Any module.
        optimizer: A component that is no loop, such as ``"morph_sgd"``.

    Raises:
        ConfigError: The component is a loop, or refuses the module.
    """
    component = registry.build("optimizers", optimizer)
    if not isinstance(component, TorchOptimizer):
        raise ConfigError(
            f"optimizer {optimizer!r} is a loop, which owns the training step: give it to a model of morphlightning"
        )
    groups = parameter_groups(module)
    for group in groups:
        for site in group.sites:
            site.read(component.needs)
    return component.build(groups)


def _role(module: nn.Module, name: str) -> str:
    roles: Mapping[str, str] = getattr(module, "roles", {})
    if name in roles:
        return roles[name]
    if isinstance(module, MorphLayer):
        return "morph"
    if isinstance(module, _NORM):
        return "norm"
    if name == "bias":
        return "bias"
    if isinstance(module, _LINEAR):
        return "linear"
    return "activation" if hasattr(module, "api_version") else "other"
