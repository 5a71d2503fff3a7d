"""The activations that are compared; those of 1-Lipschitz networks have slopes in [-1, 1]."""

from __future__ import annotations

from functools import partial

from morphlightning_plugins.activations import Absolute, LinearSpline, PReLU, ReLU

FREE = {
    "spline": partial(LinearSpline, knots=21, limit=3.0, init="relu"),
    "ReLU": ReLU,
    "PReLU": PReLU,
}


def lipschitz(limit: float, init: str = "identity") -> dict[str, object]:
    """Splines with knots on [-limit, limit] and those that others use in 1-Lipschitz networks."""
    return {
        "spline": partial(LinearSpline, knots=21, limit=limit, init=init, constraint="lipschitz", learn_scale=True),
        "ReLU": ReLU,
        "PReLU": partial(PReLU, limit=1.0),
        "absolute value": Absolute,
        "GroupSort": "group_sort",
    }
