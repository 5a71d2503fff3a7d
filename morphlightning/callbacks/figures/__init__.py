"""Figures of a run, drawn to PNG files and to TensorBoard."""

from morphlightning.callbacks.figures.activity import WeightActivity
from morphlightning.callbacks.figures.base import FigureCallback
from morphlightning.callbacks.figures.confusion import ConfusionMatrix
from morphlightning.callbacks.figures.curves import LearningCurves
from morphlightning.callbacks.figures.paths import MessagePaths
from morphlightning.callbacks.figures.reconstructions import Reconstructions
from morphlightning.callbacks.figures.splines import SplineFigures
from morphlightning.callbacks.figures.structuring import StructuringFunctions

__all__ = [
    "ConfusionMatrix",
    "FigureCallback",
    "LearningCurves",
    "MessagePaths",
    "Reconstructions",
    "SplineFigures",
    "StructuringFunctions",
    "WeightActivity",
]
