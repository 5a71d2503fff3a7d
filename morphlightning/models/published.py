"""Published ridge regularizers, from the checkpoint files of their authors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphlightning.errors import CheckpointError
from morphlightning.models.ridge import RidgeRegularizerDenoiser
from morphlightning.ridge import Filters

LIMIT = 0.1
"""The knots of published splines lie on [-0.1, 0.1]."""
NOISE = (0.0, 30 / 255)
"""Noise levels that the scales of published weakly convex regularizers are splines of."""
NORM_STEPS, NORM_SIZE = 200, 256
"""Steps of the power iteration for ||W||, and the side of its images, as the authors' code has them at test time."""


def from_wcrr_checkpoint(path: str | Path, weak_convexity: float = 1.0) -> RidgeRegularizerDenoiser:
    r"""The denoiser of a checkpoint of the weakly convex ridge regularizer, as its authors evaluate it.

    The profile :math:`\mu s_1 - \rho s_2` becomes one spline, whose values are those of the file after the projection
    of the authors. Their filters pad with zeros, where no bound of ||W|| is tight: it is found by power iteration, as
    they do, and ``certified`` is false.

    Args:
        path: The file, such as ``checkpoint_6000.pth``; it is loaded with ``weights_only=True``.
        weak_convexity: rho, which the file does not hold: 1 for the weakly convex model, 0 for its convex sibling.

    Raises:
        CheckpointError: The file is no such checkpoint; the message names what is missing or has another shape.

    Source: Goujon et al., arXiv 2308.10542, and the layout of the files that its authors published.
    """
    state = _state(path)
    kernels = _kernels(state, path, 3)
    mu, scales = _take(state, "mu_", (), path).exp(), _take(state, "spline_scaling.coefficients", (None, None), path)
    convex, concave = (
        _odd_profile(_take(state, f"activation_{part}.coefficients", (1, None), path)) for part in ("cvx", "ccv")
    )
    model = _model(kernels, weak_convexity, convex.shape[1], LIMIT, zero_mean="first", shared=True, noise=NOISE)
    with torch.no_grad():
        _set(model.regularizer.activation, mu * convex - weak_convexity * concave)
        _set(model.regularizer.scaling, scales)
    return model.eval()


def from_crr_checkpoint(
    path: str | Path, strength: float | None = None, scale: float | None = None
) -> RidgeRegularizerDenoiser:
    r"""The proximal denoiser of a checkpoint of the convex ridge regularizer R.

    It minimizes :math:`\tfrac12\|x - y\|^2 + (\lambda/\mu) R(\mu x)`. The norm of the filters is found as for
    :func:`from_wcrr_checkpoint`.

    Args:
        path: The file; it is loaded with ``weights_only=True``.
        strength: lambda; None for the file's.
        scale: mu; None for the file's.

    Raises:
        CheckpointError: The file is no such checkpoint; the message names what is missing or has another shape.

    Source: Goujon et al., arXiv 2211.12461, and the layout of the files that its authors published.
    """
    state = _state(path)
    kernels = _kernels(state, path, 2)
    features = len(kernels[-1])
    given = _take(state, "lmbd", (), path), _take(state, "mu", (), path)
    lambda_, mu = (float(saved) if own is None else own for saved, own in zip(given, (strength, scale), strict=True))
    values = _take(state, "activation.coefficients_vect", (None,), path).view(features, -1)
    rising = _clipped(values, 0.0, math.inf)
    rising = rising - rising[:, [rising.shape[1] // 2]]
    # (lambda / mu) R(mu x) has the gradient lambda W^T phi(mu W x), and W = n W_n with ||W_n|| = 1
    norm = _norm([kernel - kernel.mean((1, 2, 3), keepdim=True) for kernel in kernels])
    limit = LIMIT / (mu * norm)
    model = _model(kernels, 0.0, values.shape[1], limit, zero_mean="all", shared=False, noise=None)
    with torch.no_grad():
        _set(model.regularizer.activation, lambda_ * norm * rising)
    return model.eval()


def _set(module: Any, values: Tensor) -> None:
    module.values.copy_(values)


def _model(
    kernels: list[Tensor],
    weak_convexity: float,
    knots: int,
    limit: float,
    zero_mean: Any,
    shared: bool,
    noise: tuple[float, float] | None,
) -> RidgeRegularizerDenoiser:
    constraint = {"min": -weak_convexity, "level_ends": True, "odd": shared}
    model = RidgeRegularizerDenoiser(
        channels=[kernels[0].shape[1], *(len(kernel) for kernel in kernels)],
        kernel_size=kernels[0].shape[-1],
        zero_mean=zero_mean,
        padding="same",
        weak_convexity=weak_convexity,
        activation={"name": "linear_spline", "knots": knots, "limit": limit, "init": "zero", "constraint": constraint},
        shared=shared,
        noise=25 / 255 if noise is None else noise,
        scaled=noise is not None,
    )
    filters = model.regularizer.filters
    with torch.no_grad():
        for layer, kernel in zip(filters.layers, kernels, strict=True):
            layer.weight.copy_(kernel)  # type: ignore[operator]
        filters.given_norm.fill_(_norm(filters.kernels()))
    return model


@torch.no_grad()
def _norm(kernels: list[Tensor]) -> float:
    """||W|| on images of NORM_SIZE by power iteration, from below."""
    filters = Filters(tuple(kernels), "same")
    shape = (1, kernels[0].shape[1], NORM_SIZE, NORM_SIZE)
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for _ in range(NORM_STEPS):
        u = filters.adjoint(filters(u / u.norm()))
    return math.sqrt(float(u.norm()))


def _odd_profile(values: Tensor) -> Tensor:
    """Slopes in [0, 1], level ends, odd: the projection of the authors, which starts from 0 on the left."""
    profile = _clipped(values, 0.0, 1.0)
    return (profile - profile.flip(1)) / 2


def _clipped(values: Tensor, low: float, high: float) -> Tensor:
    """Integrate clipped slopes from 0, level on the outer pieces."""
    width = 2 * LIMIT / (values.shape[1] - 1)
    steps = values.double().diff(dim=1).clamp(low * width, high * width)
    steps[:, [0, -1]] = 0
    return torch.nn.functional.pad(steps.cumsum(1), (1, 0)).to(values.dtype)


def _state(path: str | Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    state = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a mapping with a state_dict, got {type(saved).__name__}")
    return state


def _kernels(state: dict[str, Tensor], path: str | Path, count: int) -> list[Tensor]:
    """The layers' kernels, in order, with or without a parametrization."""
    kernels = []
    for layer in range(count):
        stem = f"conv_layer.conv_layers.{layer}."
        name = next((n for n in (stem + "parametrizations.weight.original", stem + "weight") if n in state), None)
        if name is None:
            raise CheckpointError(f"{path}: no kernel of layer {layer}, {stem}weight; it has {_names(state)}")
        kernels.append(_take(state, name, (None, None, None, None), path))
    return kernels


def _take(state: dict[str, Tensor], name: str, shape: tuple[int | None, ...], path: str | Path) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{path}: no {name!r}; it has {_names(state)}")
    found = state[name]
    if found.ndim != len(shape) or any(b not in (None, a) for a, b in zip(found.shape, shape, strict=False)):
        raise CheckpointError(f"{path}: {name!r} has shape {tuple(found.shape)}, expected {shape} (None: any)")
    return found.float()


def _names(state: dict[str, Tensor]) -> str:
    return ", ".join(sorted(state)) or "nothing"
