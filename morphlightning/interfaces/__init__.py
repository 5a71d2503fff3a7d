"""The plugin API: what a component of each kind must do.

A component is found by an entry point in the group ``morphlightning.<kind>`` and named in Python, in YAML or on the
command line. Its parameters are the fields of a frozen dataclass (derivatives, heuristics, initializers, regularizers,
optimizers) or the arguments of its constructor (activations, diagnostics). This module imports torch alone.

Versions: a component declares ``api_version``; the same major version and a minor version not above ours is accepted.
Minor versions add methods with defaults, so a component written for 1.0 goes on working with 1.x.
"""

from morphlightning.interfaces._backward import DerivativeRule, Heuristic, Pulled, ToWeights
from morphlightning.interfaces._component import API_VERSION, KINDS, Component, Spec
from morphlightning.interfaces._initializers import Initializer, SiteBatch, SiteSpec
from morphlightning.interfaces._operators import ActiveChunk, ActiveGraph, SiteView
from morphlightning.interfaces._optimizers import (
    ROLES,
    Batch,
    Group,
    Loop,
    StepContext,
    StepStatistics,
    TorchOptimizer,
    TrainerFacts,
    TrainingData,
)
from morphlightning.interfaces._others import (
    Activation,
    Constrained,
    Diagnostic,
    EquivarianceDeclared,
    Equivariances,
    Hardenable,
    LipschitzDeclared,
    LipschitzSpec,
    Norm,
    Posterior,
    Proximal,
    Regularizer,
    RegularizerContext,
    Spline,
)

__all__ = [
    "API_VERSION",
    "KINDS",
    "ROLES",
    "Activation",
    "ActiveChunk",
    "ActiveGraph",
    "Batch",
    "Component",
    "Constrained",
    "DerivativeRule",
    "Diagnostic",
    "EquivarianceDeclared",
    "Equivariances",
    "Group",
    "Hardenable",
    "Heuristic",
    "Initializer",
    "LipschitzDeclared",
    "LipschitzSpec",
    "Loop",
    "Norm",
    "Posterior",
    "Proximal",
    "Pulled",
    "Regularizer",
    "RegularizerContext",
    "SiteBatch",
    "SiteSpec",
    "SiteView",
    "Spec",
    "Spline",
    "StepContext",
    "StepStatistics",
    "ToWeights",
    "TorchOptimizer",
    "TrainerFacts",
    "TrainingData",
]
