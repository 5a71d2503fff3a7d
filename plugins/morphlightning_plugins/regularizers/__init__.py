"""Terms added to the data loss."""

from morphlightning_plugins.regularizers.jacobian import JacobianNorm
from morphlightning_plugins.regularizers.l1 import L1
from morphlightning_plugins.regularizers.tv2 import TV2

__all__ = ["L1", "TV2", "JacobianNorm"]
