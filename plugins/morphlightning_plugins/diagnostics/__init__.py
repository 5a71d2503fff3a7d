"""Lightning callbacks that measure and never change training."""

from morphlightning_plugins.diagnostics.decrease_monitor import DecreaseMonitor
from morphlightning_plugins.diagnostics.gradient_density import GradientDensity
from morphlightning_plugins.diagnostics.lipschitz_audit import LipschitzAudit
from morphlightning_plugins.diagnostics.optimality_certificate import GlobalOptimalityCertificate
from morphlightning_plugins.diagnostics.pac_bayes_certificate import PACBayesCertificate
from morphlightning_plugins.diagnostics.radius_monitor import RadiusMonitor
from morphlightning_plugins.diagnostics.spline_monitor import SplineMonitor
from morphlightning_plugins.diagnostics.stability_monitor import StabilityMonitor
from morphlightning_plugins.diagnostics.tie_monitor import TieMonitor

__all__ = [
    "DecreaseMonitor",
    "GlobalOptimalityCertificate",
    "GradientDensity",
    "LipschitzAudit",
    "PACBayesCertificate",
    "RadiusMonitor",
    "SplineMonitor",
    "StabilityMonitor",
    "TieMonitor",
]
