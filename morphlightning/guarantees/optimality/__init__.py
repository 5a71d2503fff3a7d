"""Global optimality of sums of positively homogeneous subnetworks: certificates, refutations, growth."""

from morphlightning.guarantees.optimality.bounded import Factor, GainDilation, Neuron
from morphlightning.guarantees.optimality.growth import grown_slice
from morphlightning.guarantees.optimality.homogeneity import Homogeneous, check_homogeneous, homogeneity_defect
from morphlightning.guarantees.optimality.losses import output_loss_of
from morphlightning.guarantees.optimality.parallel import ParallelSum, SlicePenalty, arrange_optimizer_
from morphlightning.guarantees.optimality.penalties import PENALTIES
from morphlightning.guarantees.optimality.polar import BoundedPolar, PolarBound, PolarSearch, Shards
from morphlightning.guarantees.optimality.report import Objective, OptimalityReport, certify_optimality
from morphlightning.guarantees.optimality.subnetworks import Gain, HomogeneousNetwork
from morphlightning.guarantees.optimality.two_taps import two_tap_polar

__all__ = [
    "PENALTIES",
    "BoundedPolar",
    "Factor",
    "Gain",
    "GainDilation",
    "Homogeneous",
    "HomogeneousNetwork",
    "Neuron",
    "Objective",
    "OptimalityReport",
    "ParallelSum",
    "PolarBound",
    "PolarSearch",
    "Shards",
    "SlicePenalty",
    "arrange_optimizer_",
    "certify_optimality",
    "check_homogeneous",
    "grown_slice",
    "homogeneity_defect",
    "output_loss_of",
    "two_tap_polar",
]
