"""The aims, read from a file, and whether a row met its own.

Invariant: a row without an aim is told apart from one that met it, and an aim is about a ratio or
about a count, never about a time of this machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Aim", "read_aims"]

OWN = Path(__file__).with_name("aims.toml")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "aims.toml"


class Aim(NamedTuple):
    """What is wanted of a row; None where nothing is said."""

    at_least: float | None = None
    at_most: float | None = None
    value_at_most: float | None = None

    def met(self, figure: float, ratio: float | None) -> bool | None:
        """Whether these figures meet it; None where nothing is wanted of them."""
        if self.value_at_most is not None:
            return figure <= self.value_at_most
        if self.at_least is not None:
            return ratio is not None and ratio >= self.at_least
        if self.at_most is not None:
            return ratio is not None and ratio <= self.at_most
        return None

    def __str__(self) -> str:
        if self.value_at_most is not None:
            return f"figure <= {self.value_at_most:g}"
        if self.at_least is not None:
            return f"ratio >= {self.at_least:g}"
        return f"ratio <= {self.at_most:g}" if self.at_most is not None else ""


def read_aims(path: Path | None = None) -> Mapping[str, Aim]:
    """The aims by row name; from the folder beside the checkout where there is one, else our own.

    Raises OSError, tomllib.TOMLDecodeError, KeyError for an entry without a name.
    """
    chosen = path or (SHARED if SHARED.exists() else OWN)
    entries: list[dict[str, Any]] = tomllib.loads(chosen.read_text()).get("bench", [])
    return {
        entry["name"]: Aim(*(_number(entry.get(field)) for field in Aim._fields))
        for entry in entries
    }


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
