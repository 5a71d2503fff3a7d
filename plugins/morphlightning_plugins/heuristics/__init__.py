"""Heuristics: how a message is passed on and how a batch of parameter directions becomes one step."""

from morphlightning_plugins.heuristics.updates import CountNormalized, Plain, RadiusClipped, SupNorm

__all__ = ["CountNormalized", "Plain", "RadiusClipped", "SupNorm"]
