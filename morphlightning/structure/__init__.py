"""What a trained network can lose: filters that never win, dominated erosions, outputs that nobody reads.

What each function keeps exactly, and for which inputs, is derived in docs/structure.md.
"""

from morphlightning.structure.basis import ErosionBasis, minimal_basis
from morphlightning.structure.chains import count_parameters, keep_filters
from morphlightning.structure.exporting import PlainTorch, export
from morphlightning.structure.heads import PruningReport, prune_head

__all__ = [
    "ErosionBasis",
    "PlainTorch",
    "PruningReport",
    "count_parameters",
    "export",
    "keep_filters",
    "minimal_basis",
    "prune_head",
]
