"""Docstrings point to headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_references_to_the_conventions() -> None:
    headings = set(re.findall(r"^#+ (.+)$", (ROOT / "docs/conventions.md").read_text(), re.MULTILINE))
    found = 0
    for folder in ("morphlightning", "plugins/morphlightning_plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"\s+", " ", path.read_text())
            for reference in re.finditer(r"docs/conventions\.md(, \"([^\"]+)\")?", text):
                found += 1
                assert reference[2] is None or reference[2] in headings, f"{path}: {reference[0]!r}"
    assert found > 10
