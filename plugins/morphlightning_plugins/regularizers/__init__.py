"""Terms added to the data loss."""

from morphlightning_plugins.regularizers.l1 import L1

__all__ = ["L1"]
