"""What components of all kinds share."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, Literal

API_VERSION = "1.5"
KINDS = ("derivatives", "heuristics", "initializers", "optimizers", "activations", "regularizers", "diagnostics")

Spec = Any
"""How a component is named: a string, a mapping ``{"name": ..., **parameters}``, or the object itself."""


class Component(ABC):  # noqa: B024 - a common base, nothing of it is abstract
    """What all kinds share that are not torch or Lightning objects already.

    Attributes:
        api_version: The plugin API that the component was written for.
        syncs: What keeps the processes of a run equal. ``"gradients"``: the component acts through autograd before
            gradients are reduced. ``"statistics"``: its statistics are summed over all processes before it sees them.
            ``"parameters"``: what it writes is broadcast from process 0. A component never calls torch.distributed.
    """

    api_version: ClassVar[str] = API_VERSION
    syncs: ClassVar[Literal["gradients", "statistics", "parameters"]] = "gradients"
