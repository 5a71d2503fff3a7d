"""Components by name: the one module that knows how plugins are found.

A distribution declares an entry point in the group ``morphlightning.<kind>``; nothing is imported until a component is
asked for. A component is specified by its name (``"bouligand"``, or ``"distribution:bouligand"`` where two
distributions claim it), by a mapping (``{"name": "bouligand", "eps": 0.01}``), or by the object itself.

The environment variable ``MORPHLIGHTNING_PLUGINS`` limits what is seen: ``none`` leaves the built-in components alone,
a comma-separated list of distributions leaves those and the built-in ones.
"""

from __future__ import annotations

from morphlightning.registry._building import Parameter, build, parameters
from morphlightning.registry._catalogue import (
    PluginInfo,
    describe,
    fingerprint,
    get,
    inventory,
    names,
    refresh,
    registered,
    summary,
    survey,
)
from morphlightning.registry._saving import config, provenance, require

__all__ = [
    "Parameter",
    "PluginInfo",
    "build",
    "config",
    "describe",
    "fingerprint",
    "get",
    "inventory",
    "names",
    "parameters",
    "provenance",
    "refresh",
    "registered",
    "require",
    "summary",
    "survey",
]
