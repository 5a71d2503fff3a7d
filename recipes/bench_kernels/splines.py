"""Learnable linear splines as activations, one a channel; the reference is ReLU, the limit a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peak
import peers
import torch
import torch.nn.functional as F
from cases import Candidate, Case, Setting, compiled, ours
from spline_peers import channel_offsets, gather_scatter, pwlu
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.functional import linear_spline, linear_spline_slope

LIMIT = 3.0
KNOTS = 51
SPACING = 2 * LIMIT / (KNOTS - 1)


def spline(setting: Setting) -> Iterator[Case]:
    """One image batch of 8.4 MB; then what denoisers need of a spline: free knots, other layouts, slopes."""
    for shape in setting.shapes([(4, 32, 128, 128)], (2, 3, 8, 8)):
        yield spline_case(setting, *shape)
        yield free_case(setting, torch.contiguous_format, *shape)
        yield free_case(setting, torch.channels_last, *shape)
        yield slope_case(setting, *shape)


def spline_case(setting: Setting, *shape: int) -> Case:
    x, channels = setting.normal(*shape), shape[1]
    noisy = torch.linspace(-LIMIT, LIMIT, KNOTS).relu() + 0.1 * torch.randn(channels, KNOTS)
    values = noisy.to(setting.device)
    options = {"channels": channels, "knots": KNOTS, "limit": LIMIT}
    mine = with_values(registry.build("activations", {"name": "linear_spline", **options}), "values", values)
    prelu, table = nn.PReLU(channels).to(x.device), setting.fresh(values)
    method = "gather/scatter_add_ method (as in DeepSplines, CRR, WCRR, deepinv)"
    candidates = [
        *ours(setting, "linear_spline", lambda: mine(x), x, *mine.parameters(), every_backend=True),
        Candidate("nn.ReLU", lambda: F.relu(x), (x,), "other"),
        Candidate("nn.PReLU", lambda: prelu(x), (x, prelu.weight), "other"),
        Candidate("nn.GELU", lambda: F.gelu(x), (x,), "other"),
        Candidate(method, lambda: gather_scatter(x, table, LIMIT), (x, table)),
        unit(setting, x, values),
        *compiled(setting, "gathers", interpolated, x, table),
        *peers.offered("deepinv", lambda package: deepinv(package, x, values)),
        *peers.offered("deepsplines", lambda package: deepsplines(package, x, values)),
    ]
    name = f"{' x '.join(map(str, shape))}, {KNOTS} knots"
    return Case(name, "nn.ReLU", candidates, x.numel(), "element", peak.copies(x))


def free_case(setting: Setting, layout: torch.memory_format, *shape: int, knots: int = 21) -> Case:
    """Knots of their own for each channel, to learn as well."""
    x, channels = setting.fresh(setting.normal(*shape).contiguous(memory_format=layout)), shape[1]
    places = torch.linspace(-LIMIT, LIMIT, knots) + torch.rand(channels, knots) / knots
    places, values = setting.fresh(places.to(x.device)), setting.fresh(torch.randn(channels, knots, device=x.device))
    leaves = x, values, places
    candidates = [
        *ours(setting, "linear_spline", lambda: linear_spline(*leaves), *leaves, every_backend=True),
        Candidate("nn.ReLU", lambda: F.relu(x), (x,), "other"),
        Candidate("searchsorted + gather", lambda: searched(*leaves), leaves),
    ]
    lies = "channels_last, " if layout == torch.channels_last else ""
    name = f"{' x '.join(map(str, shape))}, {lies}{knots} free knots a channel"
    return Case(name, "nn.ReLU", candidates, x.numel(), "element", peak.copies(x))


def slope_case(setting: Setting, *shape: int, knots: int = 101) -> Case:
    """The slope of one spline that all channels share."""
    x, values = setting.normal(*shape), setting.fresh(torch.randn(knots, device=setting.device))
    ends = -LIMIT, LIMIT
    candidates = [
        *ours(setting, "slope", lambda: linear_spline_slope(x, values, ends), x, values, every_backend=True),
        Candidate("nn.ReLU", lambda: F.relu(x), (x,), "other"),
        Candidate("gather of slopes", lambda: gathered_slope(x, values), (values,)),
    ]
    name = f"{' x '.join(map(str, shape))}, slope, {knots} knots"
    return Case(name, "nn.ReLU", candidates, x.numel(), "element", peak.copies(x))


def searched(x: Tensor, values: Tensor, knots: Tensor) -> Tensor:
    """The usual form for free knots."""
    rows = x.movedim(1, 0).flatten(1)
    piece = (torch.searchsorted(knots.detach(), rows.detach().contiguous(), right=True) - 1).clamp(
        0, knots.shape[1] - 2
    )
    (low, high), (left, right) = ((t.gather(1, piece), t.gather(1, piece + 1)) for t in (knots, values))
    y = left + (right - left) * ((rows - low) / (high - low))
    return y.unflatten(1, (x.shape[0], *x.shape[2:])).movedim(0, 1)


def gathered_slope(x: Tensor, values: Tensor) -> Tensor:
    """A table of slopes, read by index."""
    spacing = 2 * LIMIT / (len(values) - 1)
    piece = ((x.detach() + LIMIT) / spacing).floor().clamp(0, len(values) - 2).long()
    return (values.diff() / spacing)[piece]


def with_values(module: nn.Module, parameter: str, values: Tensor) -> nn.Module:
    """A module on the device of the values, with them in one of its parameters."""
    target = module.to(values.device).get_parameter(parameter)
    target.data = values.reshape(target.shape).clone()
    return module


def unit(setting: Setting, x: Tensor, values: Tensor) -> Candidate:
    """PWLU with the same function: the slopes outside are those of the outer pieces."""
    points, slopes = (setting.fresh(values), setting.fresh(values.diff()[:, [0, -1]].t() / SPACING))
    bounds = setting.fresh(torch.tensor([[-LIMIT], [LIMIT]], device=x.device).repeat(1, len(values)))
    return Candidate("PWLU method", lambda: pwlu(x, points, bounds, slopes), (x, points, bounds, slopes))


def interpolated(x: Tensor, values: Tensor) -> Tensor:
    """The formula alone, for a compiler."""
    position = (x + LIMIT) / SPACING
    piece = position.detach().floor().clamp(0, KNOTS - 2)
    index = piece.long() + channel_offsets(x, values)
    table = values.flatten()
    return torch.lerp(table[index], table[index + 1], position - piece)


def deepinv(package: Any, x: Tensor, values: Tensor) -> list[Candidate]:
    """deepinv's activation without constraints on slopes."""
    made = package.LinearSpline(len(values), KNOTS, -LIMIT, LIMIT, "identity", clamp=False)
    module = with_values(made, "coefficients", values)
    return [Candidate("deepinv LinearSpline", lambda: module(x), (x, *module.parameters()))]


def deepsplines(package: Any, x: Tensor, values: Tensor) -> list[Candidate]:
    """The first generation of DeepSplines."""
    made = package.DeepBSpline("conv", len(values), size=KNOTS, range_=LIMIT)
    module = with_values(made, "_coefficients_vect", values)
    return [Candidate("deepsplines DeepBSpline", lambda: module(x), (x, *module.parameters()))]
