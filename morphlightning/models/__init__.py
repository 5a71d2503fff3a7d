"""LightningModules: classifier, autoencoder, and the base that trains them by plugins."""

from morphlightning.models.autoencoder import MorphologicalAutoencoder
from morphlightning.models.classifier import MorphologicalClassifier
from morphlightning.models.lifted import LiftedModule
from morphlightning.models.networks import MultilayerPerceptron
from morphlightning.models.parameters import build_optimizer, parameter_groups
from morphlightning.models.training import PluginTraining

__all__ = [
    "LiftedModule",
    "MorphologicalAutoencoder",
    "MorphologicalClassifier",
    "MultilayerPerceptron",
    "PluginTraining",
    "build_optimizer",
    "parameter_groups",
]
