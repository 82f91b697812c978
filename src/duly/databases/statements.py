"""The named statements of a dialect, read from its ``sql/*.sql`` files.

A block starts with ``-- name: outbox.settle``; ``:arrays`` after the name says that many rows are
passed as one array per column.  A line ``-- then`` inside a block starts a second SQL statement of
the same name.  ``lane.sql`` is rendered once for each box.  Table names are written with the prefix
``duly_`` and get the App's own prefix here, after ``check_sql_name``: the only place where text
becomes SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import NamedTuple, TypeVar

from duly.kernel.names import LANES, STRIPES, check_sql_name
from duly.ports import Result, Statement, Steps

__all__ = [
    "COLUMNS",
    "Sql",
    "drive",
    "load_migrations",
    "load_routine",
    "load_statements",
    "single",
]

T = TypeVar("T")

_BASE = "id, message_id, message_type, kind, topic, key, lane, payload, headers, status, attempts"
COLUMNS = {
    "outbox": tuple(_BASE.split(", ")),
    "inbox": (*_BASE.split(", "), "handler", "dedupe_key"),
}
_MINE = {"outbox": "", "inbox": "AND b.group_name = {group}"}
_NAME = re.compile(r"^-- name: (\S+?)( :arrays)?$", re.MULTILINE)
_TABLE = re.compile(r"\bduly_")


class Sql(NamedTuple):
    """The SQL texts of one name, run in order, and whether many rows go in as arrays."""

    texts: tuple[str, ...]
    arrays: bool


def load_statements(package: str, *, prefix: str, group_marker: str) -> dict[str, Sql]:
    """All statements of a dialect by name.

    package: where ``sql/`` lies. prefix: of the tables. group_marker: the group parameter in the
    driver's style.
    """
    check_sql_name(prefix, "table prefix")
    found: dict[str, Sql] = {}
    for text in _files(package, "sql"):
        for name, sql in _blocks(text, group_marker):
            assert name not in found, f"two statements are named {name}"
            found[name] = Sql(tuple(_TABLE.sub(prefix, part) for part in sql.texts), sql.arrays)
    return found


def load_migrations(package: str, *, prefix: str) -> list[tuple[int, str, str]]:
    """(version, name, SQL) of ``migrations/NNNN_name.sql``, in order, with the prefix put in."""
    check_sql_name(prefix, "table prefix")
    folder = files(package) / "migrations"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, _TABLE.sub(prefix, entry.read_text(encoding="utf-8"))))
    return found


def load_routine(package: str, *, prefix: str, **values: object) -> str:
    """The text of ``routines/publish.sql`` with the prefix and these values put in."""
    check_sql_name(prefix, "table prefix")
    text = (files(package) / "routines" / "publish.sql").read_text(encoding="utf-8")
    return _TABLE.sub(prefix, text.format(lanes=LANES, stripes=STRIPES, **values))


def drive(steps: Steps[T], call: Callable[[Statement], Result]) -> T:
    """Run steps to their end, each statement by ``call``; its exceptions go into the steps."""
    try:
        statement = next(steps)
        while True:
            try:
                result = call(statement)
            except Exception as error:  # noqa: BLE001  # the steps decide
                statement = steps.throw(error)
            else:
                statement = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def single(statement: Statement) -> Steps[Result]:
    """Steps of one statement."""
    return (yield statement)


def _files(package: str, folder: str) -> Iterator[str]:
    for entry in sorted((files(package) / folder).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".sql"):
            yield entry.read_text(encoding="utf-8")


def _blocks(text: str, group_marker: str) -> Iterator[tuple[str, Sql]]:
    if "{box}" not in text:
        yield from _split(text)
        return
    for box, columns in COLUMNS.items():
        rendered = text.replace("{box}", box).replace(
            "{columns}", ", ".join(f"b.{c}" for c in columns)
        )
        mine = _MINE[box].format(group=group_marker)
        yield from _split(rendered.replace("{mine}", mine))


def _split(text: str) -> Iterator[tuple[str, Sql]]:
    parts = _NAME.split(text)
    for name, arrays, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        texts = tuple(
            t for part in re.split(r"^-- then$", body, flags=re.MULTILINE) if (t := _strip(part))
        )
        yield name, Sql(texts, arrays is not None)


def _strip(part: str) -> str:
    return "\n".join(
        line for line in part.splitlines() if line.strip() and not line.startswith("--")
    )
