"""What networks make of deformed, shifted and brightened images: fields, bounds, and exact commutations."""

from morphlightning.guarantees.stability import commuting_layers  # noqa: F401 - registers what layers claim
from morphlightning.guarantees.stability.claims import Change, equivariances, register_equivariances
from morphlightning.guarantees.stability.commutator import CommutatorBound, commutator_bound
from morphlightning.guarantees.stability.defects import Defect, change, defects, evaluating
from morphlightning.guarantees.stability.fields import Deformation, DisplacementField, affine, gradient_sup
from morphlightning.guarantees.stability.warp import deform

__all__ = [
    "Change",
    "CommutatorBound",
    "Defect",
    "Deformation",
    "DisplacementField",
    "affine",
    "change",
    "commutator_bound",
    "defects",
    "deform",
    "equivariances",
    "evaluating",
    "gradient_sup",
    "register_equivariances",
]
