"""What networks make of deformed, shifted and brightened images: fields, bounds, and exact commutations."""

from morphlightning.guarantees.stability.commutator import CommutatorBound, commutator_bound
from morphlightning.guarantees.stability.fields import Deformation, DisplacementField, affine, gradient_sup
from morphlightning.guarantees.stability.warp import deform

__all__ = [
    "CommutatorBound",
    "Deformation",
    "DisplacementField",
    "affine",
    "commutator_bound",
    "deform",
    "gradient_sup",
]
