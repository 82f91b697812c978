"""What the catalog of a PostgreSQL says about capturing: tables, slot, publication, settings.

Owns the questions and the statements that mend what is missing; each error carries the statement.
Invariant: a table goes into the publication only when its replica identity lets the service update
and delete its rows - PostgreSQL refuses those statements otherwise.  Row filters and column lists
of a publication that somebody made are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from duly.databases.postgres.changes_assembly import Captured
from duly.errors import ConfigurationError, GapError
from duly.ports import Finding, Severity
from duly.sources import TableSpec

__all__ = [
    "HEARTBEAT",
    "OLDEST_STREAMING",
    "Slot",
    "Table",
    "captured",
    "find_slot",
    "find_tables",
    "inspect_capture",
    "missing_from_publication",
    "publication",
    "refuse_slot",
    "refuse_tables",
]

OLDEST_STREAMING = 140_000
HEARTBEAT = "SELECT pg_logical_emit_message(true, 'duly.heartbeat', '')"  # moves an idle log on
_TABLES = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
  format('%%I.%%I', n.nspname, c.relname),
  ARRAY(SELECT a.attname::text FROM pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
        ORDER BY k.place),
  ARRAY(SELECT a.attname::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ORDER BY a.attnum),
  ARRAY(SELECT format('%%I.%%I', ln.nspname, l.relname) FROM unnest(family.oids) leaves(relid)
        JOIN pg_class l ON l.oid = leaves.relid JOIN pg_namespace ln ON ln.oid = l.relnamespace
        WHERE l.relreplident <> 'f' ORDER BY 1),
  ARRAY(SELECT format('%%I.%%I', ln.nspname, l.relname) FROM unnest(family.oids) leaves(relid)
        JOIN pg_class l ON l.oid = leaves.relid JOIN pg_namespace ln ON ln.oid = l.relnamespace
        WHERE l.relreplident = 'n' OR l.relreplident IN ('d', 'i') AND NOT EXISTS (
          SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisvalid AND
            CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END)
        ORDER BY 1)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN LATERAL (SELECT ARRAY(
    SELECT t.relid::oid FROM pg_partition_tree(c.oid) t WHERE t.isleaf
    UNION SELECT c.oid WHERE c.relkind = 'r') AS oids) family ON true
WHERE c.relkind IN ('r', 'p') AND (n.nspname || '.' || c.relname = %(name)s
  OR c.relname = %(name)s AND pg_table_is_visible(c.oid))
ORDER BY c.relname = %(name)s DESC LIMIT 1
"""
_SLOT = """
SELECT plugin, database = current_database(), restart_lsn - '0/0'::pg_lsn,
  confirmed_flush_lsn - '0/0'::pg_lsn, wal_status, safe_wal_size, active_pid,
  coalesce((to_jsonb(s) ->> 'two_phase')::bool, false),
  coalesce((to_jsonb(s) ->> 'conflicting')::bool, false)
FROM pg_replication_slots s WHERE slot_name = %s
"""
_PUBLICATION = """
SELECT puballtables, pubviaroot, pubinsert AND pubupdate AND pubdelete AND pubtruncate
FROM pg_publication WHERE pubname = %s
"""
_PUBLISHED = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s"
_IDLE = """
SELECT slot_name::text, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
  ELSE pg_current_wal_lsn() END - restart_lsn)::int8
FROM pg_replication_slots
WHERE database = current_database() AND starts_with(slot_name::text, %s) AND NOT active
  AND restart_lsn IS NOT NULL
ORDER BY 1
"""
_ROOM = """
SELECT current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots)
"""


class Table(NamedTuple):
    """A table as the catalog has it. quoted: its name in SQL; partial: tables, itself or its
    partitions, that do not log whole old rows; blind: those whose rows PostgreSQL would not update
    when they are published.
    """

    spec: TableSpec
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    quoted: str
    primary_key: tuple[str, ...]
    columns: tuple[str, ...]
    partial: tuple[str, ...]
    blind: tuple[str, ...]


class Slot(NamedTuple):
    """A replication slot; positions as numbers, None where the server has given them up."""

    plugin: str
    here: bool
    restart: int | None
    confirmed: int | None
    wal_status: str | None
    safe_bytes: int | None
    active_pid: int | None
    two_phase: bool
    conflicting: bool


def captured(tables: Sequence[Table]) -> dict[tuple[str, str], Captured]:
    """The tables as the assembly looks them up."""
    return {
        (t.schema, t.name): Captured(t.spec, t.oid, t.schema, t.name, t.primary_key) for t in tables
    }


async def find_tables(connection: Any, specs: Sequence[TableSpec]) -> list[Table]:
    """The tables of the specs; those that do not exist are left out."""
    found: list[Table] = []
    for spec in specs:
        row = await (await connection.execute(_TABLES, {"name": spec.name})).fetchone()
        if row is not None:
            key, columns, partial, blind = (tuple(names) for names in row[6:])
            found.append(Table._make((spec, *row[:6], key, columns, partial, blind)))
    return found


async def find_slot(connection: Any, name: str) -> Slot | None:
    """The slot of this name."""
    row = await (await connection.execute(_SLOT, [name])).fetchone()
    if row is None:
        return None
    restart, confirmed = (None if lsn is None else int(lsn) for lsn in row[2:4])
    return Slot(row[0], bool(row[1]), restart, confirmed, *row[4:])


async def publication(connection: Any, name: str) -> tuple[bool, bool, bool] | None:
    """(of all tables, under the name of the partitioned table, of every kind of change)."""
    row: tuple[bool, bool, bool] | None
    row = await (await connection.execute(_PUBLICATION, [name])).fetchone()
    return row


async def missing_from_publication(
    connection: Any, name: str, tables: Sequence[Table]
) -> list[Table]:
    """Those of the tables that the publication does not have."""
    rows = await (await connection.execute(_PUBLISHED, [name])).fetchall()
    there = {(schema, table) for schema, table in rows}
    return [table for table in tables if (table.schema, table.name) not in there]


def refuse_tables(specs: Sequence[TableSpec], tables: Sequence[Table]) -> None:
    """Raise ConfigurationError for the first table that cannot be captured as it is asked for."""
    for finding in _of_tables(specs, tables):
        if finding.severity is Severity.RED:
            raise ConfigurationError(f"{finding.message}; {finding.fix}", code=finding.code)


def _of_tables(specs: Sequence[TableSpec], tables: Sequence[Table]) -> Iterator[Finding]:
    names = {table.spec.name for table in tables}
    for spec in specs:
        if spec.name not in names:
            text = f"there is no table {spec.name}"
            yield Finding("CDC_TABLE_MISSING", Severity.RED, text, "create it, or name its schema")
    for table in tables:
        yield from _of_table(table)


def _of_table(table: Table) -> Iterator[Finding]:
    spec = table.spec
    unknown = {*spec.include, *spec.exclude, *spec.key} - {*table.columns}
    if unknown:
        text = f"{spec.name} has no column {min(unknown)!r} that is logged"
        yield Finding("CDC_COLUMN_MISSING", Severity.RED, text, "correct the rule")
    if table.persistence != "p":
        fix = f"ALTER TABLE {table.quoted} SET LOGGED"
        yield Finding("CDC_TABLE_UNLOGGED", Severity.RED, f"{spec.name} writes no log", fix)
    if table.blind:
        text = (
            f"{', '.join(table.blind)} has neither a primary key nor a replica identity: "
            "PostgreSQL would refuse its updates and deletes"
        )
        yield Finding("CDC_NO_REPLICA_IDENTITY", Severity.RED, text, _full(table.blind))
    elif spec.before_image and table.partial:
        text = f"the log has no old values of {', '.join(table.partial)}"
        yield Finding("CDC_NO_BEFORE_IMAGE", Severity.RED, text, _full(table.partial))
    elif not spec.key and not table.primary_key:
        text = (
            f"{spec.name} has no primary key: all its columns name a row, no snapshot is possible"
        )
        yield Finding("CDC_NO_PRIMARY_KEY", Severity.WEAK, text, "add a primary key")


def _full(names: Sequence[str]) -> str:
    return " ".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL;" for name in names)


async def inspect_capture(connection: Any, name: str, specs: Sequence[TableSpec]) -> list[Finding]:
    """Findings on log level, rights, slot, publication and tables. name: of slot and
    publication.
    """

    async def ask(sql: str, *values: Any) -> Any:
        row = await (await connection.execute(sql, values)).fetchone()
        return row[0] if row else None

    found = [*await _of_server(ask)]
    slot = await find_slot(connection, name)
    if slot is None:
        text = f"the replication slot {name} is not there yet"
        found.append(Finding("CDC_SLOT_MISSING", Severity.WEAK, text, "it is made at the start"))
        if await ask(_ROOM) < 1:
            text = "no replication slot is free"
            found.append(
                Finding("CDC_NO_FREE_SLOT", Severity.RED, text, "raise max_replication_slots")
            )
    else:
        found += _of_slot(name, slot)
    found += await _idle_slots(connection, name)
    published = await publication(connection, name)
    if published is not None and not published[2]:
        text = f"the publication {name} leaves out kinds of changes"
        found.append(Finding("CDC_PUBLICATION_PARTIAL", Severity.WEAK, text))
    return [*found, *_of_tables(specs, await find_tables(connection, specs))]


async def _idle_slots(connection: Any, name: str) -> list[Finding]:
    """Slots of any reader of this database that nobody reads now: they keep the log for nobody."""
    prefix = "_".join([*name.split("_")[:2], ""])  # duly_DATABASE_
    rows = await (await connection.execute(_IDLE, [prefix])).fetchall()
    if not rows:
        return []
    shown = ", ".join(f"{slot} ({kept} bytes)" for slot, kept in rows)
    fix = "start the role cdc; what is left over: SELECT pg_drop_replication_slot('NAME')"
    text = f"the log is kept for slots that nobody reads now: {shown}"
    return [Finding("CDC_SLOT_IDLE", Severity.WEAK, text, fix)]


async def _of_server(ask: Any) -> list[Finding]:
    found: list[Finding] = []
    level = await ask("SHOW wal_level")
    fix = "ALTER SYSTEM SET wal_level = logical, then restart the server"
    severity = Severity.GREEN if level == "logical" else Severity.RED
    found.append(
        Finding(
            "CDC_WAL_LEVEL", severity, f"wal_level is {level}", "" if level == "logical" else fix
        )
    )
    if not await ask(
        "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user"
    ):
        text = "this role may not read the log"
        fix = f"ALTER ROLE {await ask('SELECT quote_ident(current_user)')} REPLICATION"
        found.append(Finding("CDC_NO_RIGHTS", Severity.RED, text, fix))
    if await ask("SHOW max_slot_wal_keep_size") == "-1":
        text = "a stream that stands still keeps log without limit: the disk can fill up"
        fix = "set max_slot_wal_keep_size; a reader that is further behind needs a new snapshot"
        found.append(Finding("CDC_WAL_UNBOUNDED", Severity.WEAK, text, fix))
    return found


def _of_slot(name: str, slot: Slot) -> Iterator[Finding]:
    try:
        refuse_slot(name, slot)
    except (ConfigurationError, GapError) as error:
        yield Finding(error.code, Severity.RED, error.detail, "see `cdc status`")
        return
    if slot.wal_status in ("extended", "unreserved"):
        text = f"the slot {name} is {slot.wal_status}: {slot.safe_bytes} bytes until it is lost"
        yield Finding("CDC_SLOT_AT_RISK", Severity.WEAK, text, "let the reader catch up")
    else:
        text = f"the slot {name} keeps the log"
        yield Finding("CDC_SLOT", Severity.GREEN, text)


def refuse_slot(name: str, slot: Slot) -> None:
    """Raise ConfigurationError for a slot that is none of ours, GapError for one that is lost."""
    if slot.plugin != "pgoutput" or not slot.here:
        text = f"the slot {name} is of another plugin or database; drop it or rename the reader"
        raise ConfigurationError(text, code="CDC_SLOT_FOREIGN")
    if slot.two_phase:
        text = f"the slot {name} decodes prepared transactions; make it anew without two_phase"
        raise ConfigurationError(text, code="CDC_SLOT_TWO_PHASE")
    if slot.wal_status == "lost" or slot.conflicting or None in (slot.restart, slot.confirmed):
        text = f"the server has given up the slot {name}: log that was not read is gone; drop the"
        raise GapError(f"{text} slot and take a new snapshot", code="CDC_SLOT_LOST")
