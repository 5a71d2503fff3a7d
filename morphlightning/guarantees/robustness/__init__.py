"""What a network decides near an input: certificates that hold, and attacks that look for what breaks them."""

from morphlightning.guarantees.robustness.attacks import PGD, Attacked

__all__ = ["PGD", "Attacked"]
