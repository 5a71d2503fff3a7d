"""What a network decides near an input: certificates that hold, and attacks that look for what breaks them."""

from morphlightning.guarantees.robustness import morphological_intervals, torch_intervals  # noqa: F401 - register rules
from morphlightning.guarantees.robustness.attacks import PGD, Attacked
from morphlightning.guarantees.robustness.boxes import Box, box_around
from morphlightning.guarantees.robustness.certificates import certified_margins, certified_radii
from morphlightning.guarantees.robustness.exact import WorstCase, dilation_radius, exact_margins
from morphlightning.guarantees.robustness.exporting import export_int16
from morphlightning.guarantees.robustness.integers import Agreement, IntegerNetwork, agreement
from morphlightning.guarantees.robustness.intervals import propagate, register_interval
from morphlightning.guarantees.robustness.margins import margin

__all__ = [
    "PGD",
    "Agreement",
    "Attacked",
    "Box",
    "IntegerNetwork",
    "WorstCase",
    "agreement",
    "box_around",
    "certified_margins",
    "certified_radii",
    "dilation_radius",
    "exact_margins",
    "export_int16",
    "margin",
    "propagate",
    "register_interval",
]
