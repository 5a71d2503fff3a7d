"""A trained network as a plain, smaller module, and its operators as plain torch ones."""

from __future__ import annotations

import copy
from typing import Any, cast

from lightning import LightningModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from morphlightning.errors import ConfigError
from morphlightning.layers import MorphLayer, Site
from morphlightning.models.training import PluginTraining
from morphlightning.ops import splines
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.eager import compute_dtype
from morphlightning.ops.geometry import Dense, Geometry
from morphlightning.pipeline import Pipeline
from morphlightning.splines import SplineModule
from morphlightning.structure.basis import SUPREMA, minimal_basis
from morphlightning.structure.chains import Pair, flattens, pairs

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def export(module: nn.Module) -> nn.Module:
    """The network alone, for inference: no training, no statistics, nothing that is never read.

    - A morphlightning model becomes its network; nested nn.Sequentials become one, without dropout.
    - Outputs that the next layer never reads go, with the weights that made them: those whose weights are missing for
      every output of a Dilation or Erosion, or zero for every output of an nn.Linear.
    - Suprema of erosions become their minimal basis.
    - Max-plus layers keep their weights and masks alone; rules and heuristics are the defaults.
    - Splines keep the values that are applied, without their constraint.

    The output is the same for every finite input, up to the rounding of a linear layer of another size. Weights are
    not pruned by data: do that first, by :func:`prune_head`.

    Args:
        module: A morphlightning model or any nn.Module; it is not changed.

    Returns:
        A copy in evaluation mode, without gradients, of torch.nn modules, morphlightning.layers, ErosionBasis and
        splines. Its state dict loads into any module of these sizes.

    Raises:
        ConfigError: It is a LightningModule of somebody else, whose network is not known.
    """
    plain = copy.deepcopy(_network(module)).eval().requires_grad_(False)
    if type(plain) is nn.Sequential:
        plain = nn.Sequential(*_flat(plain)).eval()
    for pair in reversed(pairs(plain)):
        _drop_unread(pair)
    return _without_training(plain)


def _network(module: nn.Module) -> nn.Module:
    if isinstance(module, PluginTraining) and isinstance(network := getattr(module, "network", None), nn.Module):
        return network
    if isinstance(module, LightningModule):
        raise ConfigError(
            f"export: {type(module).__name__} is a LightningModule whose network is not known; pass the nn.Module "
            "that maps its inputs to its outputs"
        )
    return module


def _flat(module: nn.Module) -> list[nn.Module]:
    """The steps of a chain; a second flattening in a row does nothing."""
    if type(module) is not nn.Sequential:
        return [] if type(module) in _NOTHING else [module]
    steps: list[nn.Module] = []
    for step in (step for child in module for step in _flat(child)):
        if not (steps and flattens(step) and flattens(steps[-1])):
            steps.append(step)
    return steps


def _drop_unread(pair: Pair) -> None:
    reader = pair.chain[pair.second]
    read = reader.mask if isinstance(reader, MorphLayer) else cast(Tensor, reader.weight).ne(0)
    filters = read.any(0).view(-1, pair.positions).any(1)
    if not filters.all():
        filters[0] |= not filters.any()  # a layer without inputs cannot be built
        pair.keep(filters.nonzero()[:, 0])


def _without_training(module: nn.Module) -> nn.Module:
    if isinstance(module, SUPREMA):
        return _without_training(minimal_basis(module).eval())
    if isinstance(module, SplineModule):
        return module.unconstrained()
    if isinstance(module, MorphLayer):
        module.pipeline = Pipeline.parse()
        module.site = Site(module)
    for name, child in module.named_children():
        setattr(module, name, _without_training(child))
    return module


class PlainTorch(nn.Module):
    """``module`` with its dilations and erosions, dense and windowed, and splines computed by plain torch operators.

    For torch.export and ONNX, whose files then need nothing of morphlightning. Every candidate of every output is held
    at once (and for splines with knots that are not equally spaced, whether each number lies beyond each knot), so this
    is for small (pruned) networks; elsewhere torch.export takes our layers as they are, and its files need
    morphlightning to be installed. Inputs must be finite. Soft operators and reconstruction stay as they are, and so do
    pooling layers that return provenance. The projection of constrained splines is part of what is exported, unless
    :func:`export` has settled their values before.

    Args:
        module: Any module of one tensor; it is shared, not copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the module."""
        with _PlainOperators():
            y: Tensor = self.module(x)
        return y


class _PlainOperators(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is maxplus:
            return _all_candidates(*args[:3])
        if func is splines.spline and isinstance(args[2], Tensor):
            return _by_comparisons(*args)
        return func(*args, **(kwargs or {}))


def _all_candidates(x: Tensor, w: Tensor, where: Geometry) -> Tensor:
    """Maxima (or minima) over all candidates, held at once."""
    dtype = compute_dtype(x, w)
    inputs, weights = (-x if where.dual else x).to(dtype), w.to(dtype).unflatten(0, (where.groups, -1))
    if isinstance(where, Dense):
        y = (inputs.unflatten(1, (where.groups, 1, -1)) + weights).amax(-1)
    else:
        rank = len(where.stride)
        inputs = where.pad(inputs)
        for axis, (size, stride, spacing) in enumerate(zip(w.shape[2:], where.stride, where.spacing, strict=True), 2):
            inputs = inputs.unfold(axis, spacing * (size - 1) + 1, stride)[..., ::spacing]
        weights = weights.view(*weights.shape[:3], *(1,) * rank, *w.shape[2:])
        y = (inputs.unflatten(1, (where.groups, 1, -1)) + weights).amax((3, *range(-rank, 0)))
    best: Tensor = y.flatten(1, 2).to(x.dtype)
    return -best if where.dual else best


def _by_comparisons(x: Tensor, values: Tensor, knots: Tensor) -> Tensor:
    """Splines of x (samples, channels, length), whose pieces are found by comparison with all inner knots."""
    rows = knots.view(-1, knots.shape[-1])
    piece = (x[..., None] >= rows[:, None, 1:-1]).sum(-1)
    (left, step), (start, width) = splines._look_up(values, piece), splines._look_up(rows, piece)
    return left + step * ((x - start) / width)
