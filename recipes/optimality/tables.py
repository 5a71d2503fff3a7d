"""Rows of tables from certificates."""

from __future__ import annotations

from collections.abc import Mapping

VERDICTS = {1.0: "certified", 0.0: "unknown", -1.0: "refuted"}


def certified(one: Mapping[str, float]) -> str:
    """How far above the optimum at most; a dash where nothing is certified."""
    if "excess_certified" not in one:
        return "-"
    percent = 100 * one["excess_certified"]
    return f"{percent:.3g} %" if percent < 1e4 else f"gap {one['gap_certified']:.3g}"


def row(name: str, one: Mapping[str, float]) -> dict[str, str]:
    return {
        "network": name,
        "slices": f"{one['slices']:.0f}",
        "objective": f"{one['objective']:.5f}",
        "balance": f"{one['slice_balance_max']:.1e}",
        "polar >=": f"{one['polar_lower']:.4f}",
        "polar <=": f"{one['polar_upper']:.4f}" if "polar_upper" in one else "-",
        "above F* at most": certified(one),
        "verdict": VERDICTS[one["verdict"]],
    }
