from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.testing import parametrize_with_checks


@parametrize_with_checks("derivatives", ["half", {"name": "half", "keep": 0.2, "eps": 0.5}])
def test_half_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks("activations", ["leaky_clamp", {"name": "leaky_clamp", "bound": 0.5}])
def test_leaky_clamp_conforms(check: Callable[[], None]) -> None:
    check()


def test_leaky_clamp_is_the_identity_inside_and_leaks_outside() -> None:
    clamp = registry.build("activations", {"name": "leaky_clamp", "slope": 0.5}, channels=2)
    torch.testing.assert_close(clamp(torch.tensor([[0.5, 3.0]])), torch.tensor([[0.5, 2.0]]))


def test_keep_is_a_part() -> None:
    with pytest.raises(ConfigError, match="keep must lie in"):
        registry.build("derivatives", {"name": "half", "keep": 1.5})
