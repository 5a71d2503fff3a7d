"""Optimizers: torch's own with their schedules, one for max-plus weights, and a manual loop."""

from morphlightning_plugins.optimizers.lifted import Badmm, Lifted
from morphlightning_plugins.optimizers.morph_sgd import MorphSgd
from morphlightning_plugins.optimizers.signum import Signum
from morphlightning_plugins.optimizers.torch_optimizers import Adam, AdamW, Sgd

__all__ = ["Adam", "AdamW", "Badmm", "Lifted", "MorphSgd", "Sgd", "Signum"]
