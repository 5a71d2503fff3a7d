r"""Certificates: lower bounds of the worst margin in a ball, and of the radius without which the decision stands.

The margin of a sample x of label y is :math:`m(z) = f_y(z) - \max_{k\ne y} f_k(z)`; a positive lower bound of it over
the ball :math:`\|z - x\| \le \epsilon`, cut to the range of the data, certifies that no z in it is decided otherwise.

- ``lipschitz``: with constants L of the whole network, :math:`f_y - f_k` moves by at most :math:`2L\epsilon` where
  outputs are bounded in linf, :math:`\sqrt2 L\epsilon` where in l2; if the last layer is linear with rows A, by at most
  the constant of what is before it times :math:`\|A_y - A_k\|_1` (linf) or :math:`\|A_y - A_k\|_2` (l2).
- ``interval``: the box of outputs over the cut ball (:mod:`morphlightning.guarantees.robustness.intervals`).
- ``exact``: the box of inputs of the last layer, and its exact worst margin over that box; exact for one layer.
- ``int16``: intervals of the network with weights rounded to the grid of grey levels, in integers
  (:func:`morphlightning.guarantees.robustness.export_int16`); nothing is rounded, and nothing is assumed of floats.

Derived here; docs/guarantees.md has the proofs and says what is claimed.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError, NotCertifiable, ShapeError
from morphlightning.guarantees.robustness.boxes import Clip, box_around, check_eps, check_range, others
from morphlightning.guarantees.robustness.exact import exact_margins
from morphlightning.guarantees.robustness.exporting import export_int16
from morphlightning.guarantees.robustness.integers import IntegerNetwork
from morphlightning.guarantees.robustness.intervals import propagate
from morphlightning.guarantees.robustness.rounding import forward_error
from morphlightning.lipschitz import certify
from morphlightning.lipschitz.spec import Measured, layers_of, place

Method = Literal["lipschitz", "interval", "exact", "int16"]
HALVINGS = 14
"""Of the interval in which a radius is looked for."""


def certified_margins(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    method: Method = "interval",
    clip: Clip = (0.0, 1.0),
    norm: Measured = "linf",
) -> Tensor:
    """Lower bounds of the worst margin of each sample in the ball of radius eps; positive ones are certificates.

    Args:
        network: A Sequential of layers with rules, in evaluation mode; for ``int16`` also an exported one.
        x: Samples (batch, ...); for ``int16`` images of grey levels, in [0, 1] or as integers.
        labels: Classes (batch,).
        eps: Radius, in the units of x, or one for each sample.
        method: See the module; intervals are the strongest for morphological networks, constants for others.
        clip: Range of the data; intervals use it, all check x and eps by it. None for data without bounds.
        norm: Of the ball; ``l2`` for ``lipschitz`` alone.

    Returns:
        (batch,), in float64, in the units of the outputs. They hold in exact arithmetic and as the network computes,
        in its dtype, outside autocast; those of ``int16`` are for the exported network. NaN certifies nothing.

    Raises:
        NotCertifiable: No bound is known for a layer; the message names it.
        ConfigError: eps is no radius in the units of the data, or a method or norm does not fit.
        DataError: x has values outside ``clip``, or labels are no classes.
    """
    _check(method, norm, x, labels)
    if method == "int16":
        exported, _ = _integers(network, x, clip, eps)
        _checked(exported(x[:1]), labels)
        return exported.unit * exported.margins(x, labels, exported.whole_levels(eps, x)).double()
    if method == "lipschitz":
        check_eps(eps, None if norm == "l2" else clip)
        check_range(x, clip)
        gaps, constants = _gaps(network, x, labels, eps, norm)
        reach = eps.double()[:, None] if isinstance(eps, Tensor) else eps
        return (gaps - reach * constants).amin(1)
    box = box_around(x, eps, clip)
    if method == "interval":
        box = propagate(network, box)
        _checked(box.lower, labels)
        return box.margins(labels)
    *body, (name, head) = layers_of(network)
    try:
        return exact_margins(head, propagate(nn.Sequential(*(layer for _, layer in body)), box), labels)
    except NotCertifiable as error:
        raise NotCertifiable(f"{place(name, head)}: {error}") from error


def certified_radii(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    method: Method = "lipschitz",
    clip: Clip = (0.0, 1.0),
    norm: Measured = "linf",
    limit: float | None = None,
) -> Tensor:
    """Radii within which the decision for each sample is certified; 0 where it is wrong.

    Args:
        network: As for :func:`certified_margins`.
        x: Samples (batch, ...).
        labels: Classes (batch,).
        method: In closed form for ``lipschitz``; by bisection for others, of which the lower end is returned.
        clip: Range of the data.
        norm: Of the balls.
        limit: The largest radius that is looked for; the width of ``clip`` if None. ``lipschitz`` may exceed it.

    Returns:
        (batch,), in float64, in the units of x.

    Raises:
        NotCertifiable, ConfigError, DataError: As :func:`certified_margins`.
    """
    _check(method, norm, x, labels)
    if method == "lipschitz":
        check_range(x, clip)
        first, constants = _gaps(network, x, labels, 0.0, norm)
        gaps, _ = _gaps(network, x, labels, _quotient(first, constants), norm)
        return _quotient(gaps, constants)
    limit = largest_radius(limit, clip)
    check_eps(limit, clip)
    if method == "int16":
        exported, width = _integers(network, x, clip, limit)
        _checked(exported(x[:1]), labels)
        levels = exported.radii(x, labels, math.floor(limit * exported.levels / width + 1e-9))
        return levels.double() * (width / exported.levels)
    return _bisected(network, x, labels, method, clip, limit)


def classifier_of(network: nn.Module, method: Method) -> nn.Module:
    """The network that a method certifies: the exported one for ``int16``, else the network itself."""
    return export_int16(network) if method == "int16" and not isinstance(network, IntegerNetwork) else network


def _integers(network: nn.Module, x: Tensor, clip: Clip, eps: float | Tensor) -> tuple[IntegerNetwork, float]:
    """The exported network, and the width of the range of x."""
    exported = classifier_of(network, "int16")
    assert isinstance(exported, IntegerNetwork)
    expected = (0, 1) if x.is_floating_point() else (0, exported.levels)
    if clip is not None and tuple(clip) != expected:
        raise ConfigError(f"method='int16' on images of dtype {x.dtype} needs clip={expected}, got {clip}")
    check_eps(eps, expected)
    return exported, float(expected[1])


def largest_radius(limit: float | None, clip: Clip) -> float:
    """The limit, or the width of the range of the data."""
    if limit is None and clip is None:
        raise ConfigError("radii of data without bounds need a limit, up to which they are looked for")
    return float(limit) if clip is None or limit is not None else clip[1] - clip[0]  # type: ignore[arg-type]


def _bisected(network: nn.Module, x: Tensor, labels: Tensor, method: Method, clip: Clip, limit: float) -> Tensor:
    """The largest radii that were certified, within limit / 2^HALVINGS of where that ends."""
    high = torch.full(labels.shape, limit, dtype=torch.float64, device=x.device)
    low = torch.where(certified_margins(network, x, labels, high, method, clip) > 0, high, 0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        holds = certified_margins(network, x, labels, middle, method, clip) > 0
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low


def _gaps(network: nn.Module, x: Tensor, labels: Tensor, eps: float | Tensor, norm: Measured) -> tuple[Tensor, Tensor]:
    """f_y - f_k less rounding, inf for k = y, and how far that moves at most a unit of distance; (batch, classes)."""
    certificate = certify(network, norm)
    outputs, error = forward_error(network, certificate, x, eps)
    logits = _checked(outputs, labels).double()
    gaps = logits.gather(1, labels[:, None]) - others(logits, labels) - 4 * error[:, None]
    *body, (_, head) = layers_of(network)
    if type(head) is nn.Linear:
        before = certify(nn.Sequential(*(layer for _, layer in body)), norm).spec
        kind = norm if before.norm_out == "any" else before.norm_out
        weight = head.weight.double()
        apart = (weight[:, None] - weight).norm(1 if kind == "linf" else 2, dim=-1)[labels]
        return gaps, before.constant * apart * (1 + 1e-12)
    kind = norm if certificate.spec.norm_out == "any" else certificate.spec.norm_out
    return gaps, torch.full_like(gaps, certificate.constant * (2 if kind == "linf" else math.sqrt(2) * (1 + 1e-15)))


def _quotient(gaps: Tensor, constants: Tensor) -> Tensor:
    return torch.where(gaps > 0, gaps / constants, 0).amin(1)


def _check(method: str, norm: str, x: Tensor, labels: Tensor) -> None:
    if method not in get_args(Method) or norm not in get_args(Measured):
        raise ConfigError(
            f"method must be one of {', '.join(get_args(Method))} and norm linf or l2, got {method!r} and {norm!r}"
        )
    if norm == "l2" and method != "lipschitz":
        raise ConfigError(f"method={method!r} bounds boxes, balls in linf; for norm='l2' use method='lipschitz'")
    if labels.dtype != torch.long or labels.shape != x.shape[:1]:
        raise ShapeError(
            f"expected a class for each sample, int64 ({len(x)},), got labels {labels.dtype} {tuple(labels.shape)}"
        )


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ShapeError(f"expected outputs (batch, classes) with classes >= 2, got {tuple(logits.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise DataError(f"labels must lie in 0 .. {logits.shape[1] - 1}, got up to {int(labels.max())}")
    return logits
