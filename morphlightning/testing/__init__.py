"""The conformance kit for plugin authors: does a component do what its kind promises?

    from morphlightning.testing import check_component
    check_component("derivatives", "half")

:func:`assert_equivariance` tests layers and networks, whether they commute with a change of their inputs.

Under pytest, :func:`parametrize_with_checks` makes one test of each check. Importing this package loads nothing, for
pytest imports it in every run where morphlightning is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphlightning.testing._equivariance import assert_equivariance
    from morphlightning.testing._runner import Failure, Report, check_component, checks, parametrize_with_checks

__all__ = ["Failure", "Report", "assert_equivariance", "check_component", "checks", "parametrize_with_checks"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from morphlightning.testing import _equivariance, _runner

    return getattr(_equivariance if name == "assert_equivariance" else _runner, name)
