"""Optimizers: torch's own with their schedules, and a manual loop."""

from morphlightning_plugins.optimizers.signum import Signum
from morphlightning_plugins.optimizers.torch_optimizers import Adam, AdamW, Sgd

__all__ = ["Adam", "AdamW", "Sgd", "Signum"]
