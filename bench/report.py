"""The two forms in which rows are told: a table for people, ``build/bench.json`` for programs.

Invariant: both say the same of a row - its figures, whether it met its aim, and under which
settings, as the servers said them, each side was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.aims import Aim
from bench.measure import Measured

__all__ = ["entry", "table", "verdict", "write"]


def verdict(found: Measured, aim: Aim) -> str:
    """``ok``, ``short``, ``void``, or ``-`` where nothing is wanted."""
    if found.void:
        return "void"
    met = aim.met(found.figure, found.ratio)
    return "-" if met is None else "ok" if met else "short"


def entry(found: Measured, aim: Aim) -> dict[str, Any]:
    """A row as an object of ``build/bench.json``."""
    return {
        "name": found.row.name,
        "unit": found.row.unit,
        "figure": found.figure,
        "reference": found.row.reference,
        "reference_figure": found.reference_figure,
        "ratio": found.ratio,
        "spread": found.spread,
        "raw_figure": found.raw_figure,
        "reference_share_of_raw": found.share,
        "share_least": found.share_least,
        "repeats": len(found.ours),
        "aim": str(aim),
        "verdict": verdict(found, aim),
        "void": found.void,
        "settings": _facts(found.ours),
        "reference_settings": _facts(found.reference),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of text, the settings of both sides below each."""
    columns = (
        f"{'row':44} {'figure':>10} {'unit':11} {'reference':>10} {'ratio':>6} {'spread':>6} "
        f"{'ref/raw':>7}  {'aim':15} verdict"
    )
    lines = [columns, "-" * len(columns)]
    for row in rows:
        lines.append(
            f"{row['name']:44} {_shown(row['figure'])} {row['unit']:11} "
            f"{_shown(row['reference_figure'])} {_part(row['ratio'], 6)} {_part(row['spread'], 6)} "
            f"{_part(row['reference_share_of_raw'], 7)}  {row['aim']:15} {row['verdict']}"
        )
        for who in ("settings", "reference_settings"):
            if row[who]:
                said = ", ".join(f"{name}={value}" for name, value in row[who].items())
                lines.append(f"    {'ours' if who == 'settings' else 'reference'}: {said}")
        if row["void"]:
            lines.append(f"    void: {row['void']}")
    return "\n".join(lines)


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows as one JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n")


def _facts(samples: Sequence[Any]) -> dict[str, Any]:
    return dict(samples[-1].facts) if samples else {}


def _shown(figure: float | None) -> str:
    if figure is None:
        return f"{'':>10}"
    return f"{figure:>10,.0f}" if abs(figure) >= 100 else f"{figure:>10.3f}"


def _part(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:>{width}.2f}"
