"""These tests compute in plain torch: compiling kernels would take longer than all of them."""

from collections.abc import Iterator

import pytest

from morphlightning import backends


@pytest.fixture(autouse=True, scope="module")
def _plain_torch() -> Iterator[None]:
    with backends.use("eager"):
        yield
