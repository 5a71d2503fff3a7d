"""Layers by the names of their families, for rules that hold for all ranks."""

from __future__ import annotations

from torch import nn

from morphlightning import layers

RANKS = ("1d", "2d", "3d")


def family(*names: str, ranks: tuple[str, ...] = ("", *RANKS)) -> list[type[nn.Module]]:
    """The classes ``layers.<name><rank>``; rank "" is the dense one."""
    return [getattr(layers, name + rank) for name in names for rank in ranks]
