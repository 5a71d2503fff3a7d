"""Lifted training: networks of affine layers and proximal activations without derivatives of the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from morphlightning import bregman
from morphlightning.bregman import Chain, LiftedLoop, Method, OutputLoss

PerLayer = float | Sequence[float]


@dataclass
class Badmm(LiftedLoop):
    """The Bregman alternating direction method of multipliers; an iteration is one pass through all samples.

    The settings are those of :class:`morphlightning.bregman.Badmm`, and of every lifted loop. ``ridge`` is in the units
    of the sum of the losses over all samples: choose it by validation, as a weight decay. ``order="ZWXM"`` with all
    step sizes 1 and mu=1 is the method as published; ``order="xWM"`` is for deep networks.

    Source: Wang and Benning, Gradient based training of non-smooth neural networks; see docs/lifted.md.
    """

    mu: float = 3.0
    rho: PerLayer = 1.0
    ridge: PerLayer = (100.0, 1.0)
    tau_x: float = 1.9
    tau_z: float = 1.0
    tau_m: float = 1.0
    tau_w: float = 1.0
    order: str = "ZXWM"
    z_step: Literal["linearized", "gradient", "bregman", "exact"] = "linearized"
    x_step: Literal["auto", "prox", "mirror"] = "auto"
    w_step: Literal["exact", "gradient"] = "exact"

    def make(self, chain: Chain, loss: OutputLoss) -> Method:
        """BADMM on this chain."""
        return bregman.Badmm(chain, loss, **_settings(self))


@dataclass
class Lifted(LiftedLoop):
    """The lifted Bregman objective without multipliers.

    ========================  ==========================================================================================
    mode                      an iteration
    ========================  ==========================================================================================
    ``"full"``                one pass through all samples; the objective never increases (``MajorizeMinimize``)
    ``"incremental"``         one batch; auxiliary variables of every sample are kept (``Incremental``)
    ``"memoryless"``          one batch, nothing kept of samples (``Memoryless``)
    ``"ema"``                 one batch, nothing kept, a moving average of Gram matrices (``MovingAverage``)
    ========================  ==========================================================================================

    The settings are those of these classes of :mod:`morphlightning.bregman`; None leaves a setting to the class. One
    that the mode does not have is refused. ``ridge`` is in the units of the sum of the losses over all samples.

    Source: Wang and Benning, JMLR 24(232), 2023, for the objective; see docs/lifted.md.
    """

    mode: Literal["full", "incremental", "memoryless", "ema"] = "full"
    mu: float = 3.0
    ridge: PerLayer = (100.0, 1.0)
    tau_x: float | None = None
    inner_x: int = 1
    tau_w: float | None = None
    tau: float | None = None
    lr: float | None = None
    decay: float | None = None
    beta: float | None = None
    damping: float | None = None

    METHODS: ClassVar[dict[str, type[Method]]] = {
        "full": bregman.MajorizeMinimize,
        "incremental": bregman.Incremental,
        "memoryless": bregman.Memoryless,
        "ema": bregman.MovingAverage,
    }
    BELONG: ClassVar[dict[str, str]] = {
        "tau_w": "full",
        "tau": "memoryless",
        "lr": "ema",
        "decay": "ema",
        "beta": "ema",
        "damping": "ema",
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.mode not in self.METHODS:
            raise ValueError(f"mode must be one of {', '.join(self.METHODS)}, got {self.mode!r}")
        for name, mode in self.BELONG.items():
            if getattr(self, name) is not None and self.mode != mode:
                raise ValueError(
                    f"{name} belongs to mode {mode!r}, got {name}={getattr(self, name)} with {self.mode!r}"
                )

    @property
    def owns_samples(self) -> bool:
        """Whether the mode keeps auxiliary variables."""
        return self.METHODS[self.mode].persistent

    def make(self, chain: Chain, loss: OutputLoss) -> Method:
        """The method of the mode on this chain."""
        settings = {name: value for name, value in _settings(self).items() if name != "mode" and value is not None}
        return self.METHODS[self.mode](chain, loss, **settings)


def _settings(loop: LiftedLoop) -> dict[str, Any]:
    """The fields of a loop that are settings of its method."""
    common = {field.name for field in fields(LiftedLoop)}
    return {field.name: getattr(loop, field.name) for field in fields(loop) if field.name not in common}
