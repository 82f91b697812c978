"""Queries that a person wrote: their ``:name`` values, and the conditions put around them.

Owns finding the names - not in quotes, comments, casts or dollar quotes - and the comparison of a
key of several columns.  Invariant: text that is not a name is passed on as it is.  Values never
become text here; the marks that stand for them are the driver's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

__all__ = ["Term", "behind", "marked", "up_to"]

_PARTS = (
    r'"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|::'
    r"|:(?P<name>[A-Za-z_]\w*)"
)
_PLAIN = re.compile(rf"[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|{_PARTS}", re.DOTALL)
_BACKSLASH = re.compile(rf"'(?:[^'\\]|\\.|'')*'|{_PARTS}", re.DOTALL)


def marked(
    text: str,
    mark: Callable[[str], str],
    *,
    literal: Callable[[str], str] = str,
    backslash: bool = False,
) -> tuple[str, list[str]]:
    """The query with each ``:name`` replaced, and the names in order, each as often as it stands.

    mark: what stands for a name. literal: applied to all other text (a driver may double its '%').
    backslash: whether a backslash escapes in quotes (MySQL). A final semicolon is left out.
    """
    pieces: list[str] = []
    names: list[str] = []
    begin = 0
    text = text.strip().rstrip(";").rstrip()
    for match in (_BACKSLASH if backslash else _PLAIN).finditer(text):
        name = match["name"]
        if name is None:
            continue
        pieces += [literal(text[begin : match.start()]), mark(name)]
        names.append(name)
        begin = match.end()
    pieces.append(literal(text[begin:]))
    return "".join(pieces), names


class Term(NamedTuple):
    """One column of a key in a comparison. column, value: SQL."""

    column: str
    value: str
    descending: bool = False


def behind(terms: Sequence[Term]) -> str:
    """The condition for a row that comes after a key."""
    if len({term.descending for term in terms}) == 1:
        sign = "<" if terms[0].descending else ">"
        return f"{_row(t.column for t in terms)} {sign} {_row(t.value for t in terms)}"
    first, *rest = terms
    sign = "<" if first.descending else ">"
    beyond, level = f"{first.column} {sign} {first.value}", f"{first.column} = {first.value}"
    return f"({beyond} OR ({level} AND {behind(rest)}))"


def up_to(terms: Sequence[Term]) -> str:
    """The condition for a row that comes before a key, or has it."""
    turned = [term._replace(descending=not term.descending) for term in terms]
    same = f"{_row(t.column for t in terms)} = {_row(t.value for t in terms)}"
    return f"({behind(turned)} OR {same})"


def _row(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else f"({', '.join(found)})"
