"""What a statement in the binary log means for the tables that are captured.

Owns the reading of such a statement: far enough to know which tables it empties, takes away or
puts in the place of others, and no further.  Rows never come as statements in row format; where one
may have changed captured rows - a session that logs statements - that is told, and it ends the
stream.  Invariant: a statement whose verb is not known to leave rows alone may have changed them.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

__all__ = ["Effect", "TableName", "effects_of"]

TableName = tuple[str, str]
_TOKEN = re.compile(
    r"""\s+ | --(?=\s|\Z)[^\n]* | \#[^\n]* | /\*(?!M?!).*?\*/
    | (?P<open>/\*M?!\d*) | (?P<close>\*/)
    | (?P<tick>`(?:[^`]|``)*`) | (?P<text>'(?:[^'\\]|\\.|'')*') | (?P<quoted>"(?:[^"\\]|\\.|"")*")
    | (?P<word>[\w$]+) | (?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_NO_ROWS = {
    "ALTER", "ANALYZE", "CHECK", "CREATE", "DROP", "FLUSH", "GRANT", "INSTALL", "OPTIMIZE",
    "RELEASE", "RENAME", "REPAIR", "RESET", "REVOKE", "SET", "TRUNCATE", "UNINSTALL", "USE",
}  # fmt: skip
_MOVES_ROWS = {"DROP", "TRUNCATE", "EXCHANGE", "DISCARD", "IMPORT", "CONVERT"}  # of partitions
_OFTEN = {"IF", "NOT", "EXISTS", "TEMPORARY", "ONLINE", "OFFLINE", "IGNORE", "WAIT", "NOWAIT"}


class Effect(NamedTuple):
    """What befell a table: ``truncate``, all its rows went; ``lost``, it was dropped, renamed or
    replaced, or rows went with a part of it; ``rows``, a statement may have changed its rows.
    """

    kind: Literal["truncate", "lost", "rows"]
    table: TableName


class _Word(NamedTuple):
    text: str
    name: bool  # quoted as a name

    @property
    def upper(self) -> str:
        return "" if self.name else self.text.upper()


def effects_of(text: str, schema: str, captured: Collection[TableName]) -> list[Effect]:
    """What a statement does to the captured tables. schema: the one it was said in."""
    words = list(_words(text))
    if [word.upper for word in words[:2]] == ["SET", "STATEMENT"]:
        start = next((n for n, word in enumerate(words) if word.upper == "FOR"), 0)
        words = words[start + 1 :]
    if not words:
        return []
    if words[0].upper not in _NO_ROWS:
        return [Effect("rows", table) for table in captured if _may_touch(words, schema, table)]
    found = [
        Effect(kind, table)
        for kind, named in _named(words, schema)
        for table in captured
        if _same(named, table)
    ]
    return list(dict.fromkeys(found))


def _words(text: str) -> Iterator[_Word]:
    """Double quotes hold names in some sessions and texts in others; where a name is looked for,
    they hold one.
    """
    for match in _TOKEN.finditer(text):
        kind, value = match.lastgroup, match.group()
        if kind in ("tick", "quoted"):
            yield _Word(value[1:-1].replace(2 * value[0], value[0]), name=True)
        elif kind in ("word", "sign"):
            yield _Word(value, name=False)


def _may_touch(words: list[_Word], schema: str, table: TableName) -> bool:
    """Views, triggers and routines hide names: a statement of the same schema is enough."""
    names = {word.text.casefold() for word in words}
    here = schema.casefold() == table[0].casefold()
    return here or table[0].casefold() in names or table[1].casefold() in names


def _same(named: TableName, table: TableName) -> bool:
    """Without regard to case, as some servers have it; no table is there twice, then. An empty
    name stands for all tables of the schema.
    """
    return (
        named[0].casefold() == table[0].casefold()
        and named[1].casefold() in ("", table[1].casefold())
    )  # fmt: skip


def _named(
    words: list[_Word], schema: str
) -> Iterator[tuple[Literal["truncate", "lost"], TableName]]:
    verb, rest = words[0].upper, words[1:]
    if verb == "TRUNCATE":
        for name in _names(rest[1:] if rest and rest[0].upper == "TABLE" else rest, schema):
            yield "truncate", name
    elif verb == "DROP":
        yield from (("lost", name) for name in _dropped(rest, schema))
    elif verb == "RENAME" and rest and rest[0].upper in ("TABLE", "TABLES"):
        yield from (("lost", name) for name in _names(rest[1:], schema))
    elif verb == "CREATE":
        yield from (("lost", name) for name in _replaced(rest, schema))
    elif verb == "ALTER":
        yield from (("lost", name) for name in _altered(rest, schema))


def _dropped(words: list[_Word], schema: str) -> Iterator[TableName]:
    kinds = [word.upper for word in words[:2]]
    if "TEMPORARY" in kinds:
        return
    if kinds[:1] in (["DATABASE"], ["SCHEMA"]):
        name = next((word.text for word in words[1:] if word.upper not in _OFTEN), "")
        yield name, ""
    elif kinds[:1] in (["TABLE"], ["TABLES"]):
        yield from _names(words[1:], schema)


def _replaced(words: list[_Word], schema: str) -> Iterator[TableName]:
    """CREATE OR REPLACE TABLE; a plain CREATE fails where the table is there."""
    kinds = [word.upper for word in words[:4]]
    if kinds[:3] == ["OR", "REPLACE", "TABLE"]:
        yield from _names(words[3:], schema, one=True)


def _altered(words: list[_Word], schema: str) -> Iterator[TableName]:
    start = next((n for n, word in enumerate(words[:4]) if word.upper == "TABLE"), None)
    if start is None or any(word.upper not in _OFTEN for word in words[:start]):
        return
    name = next(_names(words[start + 1 :], schema, one=True), None)
    kinds = [word.upper for word in words[start + 1 :]]
    # RENAME COLUMN, INDEX and KEY leave the table where it is.
    renames = (
        kind == "RENAME" and kinds[n + 1 : n + 2] not in (["COLUMN"], ["INDEX"], ["KEY"])
        for n, kind in enumerate(kinds)
    )
    moved = (
        kind in _MOVES_ROWS and kinds[n + 1 : n + 2] in (["PARTITION"], ["TABLESPACE"], ["TABLE"])
        for n, kind in enumerate(kinds)
    )
    if name is not None and (any(renames) or any(moved)):
        yield name


def _names(words: list[_Word], schema: str, *, one: bool = False) -> Iterator[TableName]:
    """The names in a list, with or without their schemas; TO separates them like a comma."""
    parts: list[str] = []
    dotted = True
    for word in [*words, _Word(",", name=False)]:
        if word.upper in ("TO", ",") and not word.name:
            if parts:
                yield (schema, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
                if one:
                    return
            parts, dotted = [], True
        elif word.text == "." and not word.name:
            dotted = True
        elif not parts and word.upper in _OFTEN:
            continue
        elif dotted and len(parts) < 2:
            parts.append(word.text)
            dotted = False
        elif one:
            yield (schema, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
            return
