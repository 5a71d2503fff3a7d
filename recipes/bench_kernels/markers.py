"""The places of tables in a document: between ``<!-- bench:GROUP -->`` and ``<!-- /bench -->``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def marked(group: str) -> re.Pattern[str]:
    """What stands between the markers of a group."""
    return re.compile(rf"(<!-- bench:{re.escape(group)} -->\n).*?(<!-- /bench -->)", re.DOTALL)


def without_markers(path: Path, groups: Sequence[str]) -> list[str]:
    """Groups that a document has no place for."""
    text = path.read_text(encoding="utf-8")
    return [group for group in groups if not marked(group).search(text)]


def replace(path: Path, group: str, table: str) -> None:
    """Put a fresh table between the markers of its group."""
    text = path.read_text(encoding="utf-8")
    path.write_text(marked(group).sub(lambda found: found[1] + table + found[2], text), encoding="utf-8")
