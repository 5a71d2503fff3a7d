"""Shared by all tests."""

import lightning.pytorch  # noqa: F401 - its log handlers take the stderr of the first import: pytest's own, not a test's
