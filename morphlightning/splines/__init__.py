"""Learnable linear splines under control of their slopes."""

from __future__ import annotations

from morphlightning.splines.constraint import SlopeConstraint

__all__ = ["SlopeConstraint"]
