"""The options behind the '?' of a URL, read the same way by every adapter.

Owns reading and bounding values; which options there are, and what they mean, is the adapter's.
The invariant: an option that is unknown or out of its bounds is a ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl

__all__ = ["choice", "options_of", "whole"]


def options_of(query: str, known: Collection[str]) -> dict[str, str]:
    """The options of a query string. known: their names. Raises ValueError."""
    options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return options


def choice(options: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words; the first of them where none is given. Raises ValueError."""
    value = options.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}")
    return value


def whole(options: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    """A whole number from 1 to ``most``; ``default`` where none is given. Raises ValueError."""
    text = options.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}")
    return int(text)
