"""Derivative rules: at a maximum with ties, who receives the message.

``first``, ``uniform``, ``all`` and ``bouligand`` coincide with the gradient where there are no ties; ``soft`` is the
gradient of log-sum-exp.
"""

from morphlightning_plugins.derivatives.bouligand import Bouligand
from morphlightning_plugins.derivatives.selection import All, First, Uniform
from morphlightning_plugins.derivatives.soft import Soft

__all__ = ["All", "Bouligand", "First", "Soft", "Uniform"]
