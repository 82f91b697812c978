"""The life of duly's tables: which version they have, how they get the next one, whose they are.

Owns the rows of ``duly_meta`` that say so: ``schema_version``, ``min_code_version``, ``app``,
``lanes``, ``stripes`` and ``group/NAME``.  The invariant: a program writes into tables only when it
knows their layout, they place keys as it does, and they are its own App's.

Migrations are expand-only within a major version: they add tables, nullable or defaulted columns
and indexes, and statements name their columns, so code N-1 runs on schema N.  A migration that
takes something away comes with a major version and raises ``MIN_CODE_VERSION``, which keeps older
code out.  A version is recorded in the transaction of its migration; the loser of two concurrent
upgrades finds its work done.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

from duly.errors import DulyError, SchemaError
from duly.kernel.names import LANES, STRIPES, check_name
from duly.outbox.layout import compare, layout_of, live_layout
from duly.ports import Connection, Database, Finding, Severity, Statement, Steps

__all__ = ["MIN_CODE_VERSION", "Schema", "SchemaStatus"]

MIN_CODE_VERSION = 1  # the oldest code, by its newest migration, that can work on these tables
_MAKES_ITSELF = "sqlite"  # no other database is there just for this program


class SchemaStatus(NamedTuple):
    """current: the version of the tables, 0 where there are none. wanted: the newest this code
    knows. pending: the migrations in between. least_code: code older than this is refused by the
    tables. app: whose they are, "" for nobody's yet.
    """

    current: int
    wanted: int
    pending: tuple[str, ...]
    least_code: int
    app: str


class Schema:
    """The tables of one App in one database. app: its name; "" where only the tables are looked
    after.
    """

    def __init__(self, database: Database, app: str = "") -> None:
        self._database = database
        self._app = check_name(app, "app") if app else ""
        self._migrations = database.migrations()

    @property
    def makes_itself(self) -> bool:
        """Whether tables appear by themselves at a start."""
        return self._database.dialect == _MAKES_ITSELF

    def status(self) -> SchemaStatus:
        """Where the tables stand. Raises DatabaseUnavailableError, ConfigurationError."""
        with closing(self._database.connect()) as connection:
            return self._status(_meta(connection))

    def start(self) -> None:
        """What an App does before it touches its tables: on SQLite make them, elsewhere require
        them; then claim them.

        Raises SchemaError: no tables, older or too new ones, another App's, other lanes.
        Idempotence: safe to repeat and to run in many processes at once.
        """
        with closing(self._database.connect()) as connection:
            if self.makes_itself:
                self._upgrade(connection)
            self._require(_meta(connection))
            self._claim(connection)

    def verify(self) -> None:
        """Raise SchemaError unless this program may write into the tables; changes nothing."""
        with closing(self._database.connect()) as connection:
            self._require(_meta(connection))

    def upgrade(self) -> tuple[str, ...]:
        """Run the pending migrations; returns their names, nothing when there were none.

        Guarantee: each migration and its version are one transaction. On failure: that migration is
        rolled back, the ones before it stay. Idempotence: safe to repeat and to run in many
        processes at once. Raises SchemaError (another App's tables), and what the database raises.
        """
        with closing(self._database.connect()) as connection:
            done = self._upgrade(connection)
            self._claim(connection)
            return done

    def sql(self, *, after: int = 0) -> str:
        """The SQL of all migrations above version ``after``, each with the record of itself."""
        parts = [f"-- {_title(m)}\n{self._script(m)}" for m in self._migrations if m[0] > after]
        return "\n\n".join(parts)

    def check(self) -> list[Finding]:
        """Compare the live tables, columns, indexes and functions with what the migrations make;
        nothing when all is there.
        """
        with closing(self._database.connect()) as connection:
            meta = _meta(connection)
            found = self._refusals(meta)
            if not meta:
                return found
            columns = connection.ask(Statement("schema.columns")).rows
            indexes = connection.ask(Statement("schema.indexes")).rows
            functions = connection.ask(Statement("schema.functions")).rows
        current = self._status(meta).current
        wanted = layout_of(text for version, _, text in self._migrations if version <= current)
        return [*found, *compare(wanted, live_layout(columns, indexes, functions))]

    def record_groups(self, modes: Mapping[str, str]) -> None:
        """Record the order mode of each group (``none`` or ``key``) the first time, and compare it
        from then on.

        Raises SchemaError when a mode has changed: what is stored was received under the old one.
        """
        if not modes:
            return
        for group, mode in modes.items():
            check_name(group, "group")
            assert mode in ("none", "key"), f"group {group} has the unknown order mode {mode}"
        with closing(self._database.connect()) as connection:
            recorded = connection.run(_record_groups(modes))
        changed = [
            f"group {group} is {mode!r} and was {recorded[group]!r}"
            for group, mode in modes.items()
            if recorded[group] != mode
        ]
        if changed:
            hint = "give the handlers a new group name, or their old order back"
            raise SchemaError(f"{'; '.join(changed)}; {hint}", code="GROUP_MODE_CHANGED")

    def _status(self, meta: Mapping[str, str]) -> SchemaStatus:
        current = int(meta.get("schema_version", 0))
        pending = tuple(_title(m) for m in self._migrations if m[0] > current)
        least = int(meta.get("min_code_version", 0))
        return SchemaStatus(current, self._migrations[-1][0], pending, least, meta.get("app", ""))

    def _upgrade(self, connection: Connection) -> tuple[str, ...]:
        meta = _meta(connection)
        foreign = [finding for finding in self._refusals(meta) if finding.code != "SCHEMA_OLDER"]
        if foreign and meta:
            raise SchemaError(foreign[0].message, code=foreign[0].code)
        current = self._status(meta).current
        pending = (migration for migration in self._migrations if migration[0] > current)
        return tuple(_title(m) for m in pending if self._migrate(connection, m))

    def _migrate(self, connection: Connection, migration: tuple[int, str, str]) -> bool:
        try:
            connection.script(self._script(migration))
        except DulyError:
            # Somebody else may have run it while we waited: then ours fails on what is there.
            if self._status(_meta(connection)).current >= migration[0]:
                return False
            raise
        return True

    def _script(self, migration: tuple[int, str, str]) -> str:
        version, _, text = migration
        record = self._database.prepare(Statement("schema.record"))[0][0]
        return f"{text.rstrip()}\n{record.format(version=version, least=MIN_CODE_VERSION)}"

    def _claim(self, connection: Connection) -> None:
        wanted = {"lanes": str(LANES), "stripes": str(STRIPES)}
        if self._app:
            wanted["app"] = self._app
        if any(_meta(connection).get(name) is None for name in wanted):
            connection.run(_put_new(wanted))
        self._require(_meta(connection))

    def _require(self, meta: Mapping[str, str]) -> None:
        for finding in self._refusals(meta):
            raise SchemaError(finding.message, code=finding.code)

    def _refusals(self, meta: Mapping[str, str]) -> list[Finding]:
        """Why this program may not write into these tables."""
        status = self._status(meta)
        if not meta:
            return [_red("SCHEMA_MISSING", "there are no duly tables here")]
        found = []
        if status.least_code > status.wanted:
            text = f"the tables need code that knows schema {status.least_code}; "
            found.append(_red("SCHEMA_NEWER", f"{text}this code knows {status.wanted}"))
        elif status.current < status.wanted:
            text = f"the tables have schema {status.current}, wanted is {status.wanted}"
            found.append(_red("SCHEMA_OLDER", text))
        if self._app and status.app not in ("", self._app):
            text = f"the tables belong to the App {status.app!r}, not {self._app!r}"
            found.append(_red("SCHEMA_OTHER_APP", f"{text}; use another table_prefix or database"))
        for name, ours in (("lanes", LANES), ("stripes", STRIPES)):
            if meta.get(name, str(ours)) != str(ours):
                text = f"the tables have {meta[name]} {name}, this code places keys on {ours}"
                found.append(_red("SCHEMA_LANES", text))
        return found


def _meta(connection: Connection) -> dict[str, str]:
    """The rows of ``duly_meta``; empty when there is no such table."""
    if not connection.ask(Statement("schema.exists")).rows:
        return {}
    return dict(connection.ask(Statement("meta.all")).rows) or {"schema_version": "0"}


def _put_new(rows: Mapping[str, str]) -> Steps[None]:
    for name, value in rows.items():
        yield Statement("meta.put_new", {"name": name, "value": value})


def _record_groups(modes: Mapping[str, str]) -> Steps[dict[str, str]]:
    for group in sorted(modes):  # in one order: two Apps that start at once must not deadlock
        yield Statement("meta.put_new", {"name": f"group/{group}", "value": modes[group]})
    rows = (yield Statement("meta.all")).rows
    return {name.removeprefix("group/"): value for name, value in rows if name.startswith("group/")}


def _title(migration: tuple[int, str, str]) -> str:
    version, name, _ = migration
    return f"{version:04d}_{name}"


def _red(code: str, message: str) -> Finding:
    return Finding(code, Severity.RED, message, "run `duly db status`, then `duly db upgrade`")
