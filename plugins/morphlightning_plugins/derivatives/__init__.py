"""Derivative rules: at a maximum with ties, who receives the message.

``first``, ``uniform``, ``all`` and ``bouligand`` coincide with the gradient where there are no ties.
"""

from morphlightning_plugins.derivatives.bouligand import Bouligand
from morphlightning_plugins.derivatives.selection import All, First, Uniform

__all__ = ["All", "Bouligand", "First", "Uniform"]
