"""LightningModules: classifiers, autoencoder, and the base that trains them by plugins."""

from morphlightning.models.autoencoder import MorphologicalAutoencoder
from morphlightning.models.certified import CertifiedClassifier
from morphlightning.models.classifier import MorphologicalClassifier
from morphlightning.models.flow import NormalizingFlow
from morphlightning.models.lifted import LiftedModule
from morphlightning.models.losses import MarginHinge
from morphlightning.models.networks import MultilayerPerceptron
from morphlightning.models.parameters import build_optimizer, parameter_groups
from morphlightning.models.published import from_crr_checkpoint, from_wcrr_checkpoint
from morphlightning.models.ridge import RidgeRegularizerDenoiser
from morphlightning.models.training import PluginTraining

__all__ = [
    "CertifiedClassifier",
    "LiftedModule",
    "MarginHinge",
    "MorphologicalAutoencoder",
    "MorphologicalClassifier",
    "MultilayerPerceptron",
    "NormalizingFlow",
    "PluginTraining",
    "RidgeRegularizerDenoiser",
    "build_optimizer",
    "from_crr_checkpoint",
    "from_wcrr_checkpoint",
    "parameter_groups",
]
