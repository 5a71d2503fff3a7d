"""Two components for morphlightning: the derivative rule ``half`` and the activation ``leaky_clamp``."""
