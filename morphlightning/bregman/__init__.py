"""Lifted Bregman training: networks with proximal activations, trained block by block.

Nothing here differentiates an activation.
"""

from morphlightning.bregman.activations import (
    Clamp,
    Identity,
    LeakyReLU,
    ProximalActivation,
    ReLU,
    Softmax,
    SoftShrink,
)
from morphlightning.bregman.badmm import Badmm
from morphlightning.bregman.chain import Chain, Layer
from morphlightning.bregman.loop import LiftedLoop
from morphlightning.bregman.losses import BregmanLoss, CrossEntropy, OutputLoss, SquaredError, output_loss
from morphlightning.bregman.majorize import MajorizeMinimize
from morphlightning.bregman.method import Method, Samples
from morphlightning.bregman.optimizer import LiftedOptimizer
from morphlightning.bregman.proximal import proximal
from morphlightning.bregman.smooth import CELU, ELU, Sigmoid, SmoothActivation, Tanh
from morphlightning.bregman.splines import Spline
from morphlightning.bregman.stochastic import Incremental, Memoryless, MovingAverage

__all__ = [
    "CELU",
    "ELU",
    "Badmm",
    "BregmanLoss",
    "Chain",
    "Clamp",
    "CrossEntropy",
    "Identity",
    "Incremental",
    "Layer",
    "LeakyReLU",
    "LiftedLoop",
    "LiftedOptimizer",
    "MajorizeMinimize",
    "Memoryless",
    "Method",
    "MovingAverage",
    "OutputLoss",
    "ProximalActivation",
    "ReLU",
    "Samples",
    "Sigmoid",
    "SmoothActivation",
    "SoftShrink",
    "Softmax",
    "Spline",
    "SquaredError",
    "Tanh",
    "output_loss",
    "proximal",
]
