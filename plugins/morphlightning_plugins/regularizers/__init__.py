"""Terms added to the data loss."""

from morphlightning_plugins.regularizers.activation_information import ActivationInformation
from morphlightning_plugins.regularizers.jacobian import JacobianNorm
from morphlightning_plugins.regularizers.l1 import L1
from morphlightning_plugins.regularizers.matched_decay import MatchedDecay
from morphlightning_plugins.regularizers.tv2 import TV2
from morphlightning_plugins.regularizers.weight_information import WeightInformation

__all__ = ["L1", "TV2", "ActivationInformation", "JacobianNorm", "MatchedDecay", "WeightInformation"]
