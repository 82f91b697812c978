"""The change source of a PostgreSQL: its write-ahead log, read through a replication slot.

Owns one reader's slot and publication, which bear the same name, and the way into the stream.
Invariants: a stored position is never older than what the server has forgotten - it would go on
behind the gap without a word - and never ahead of its log; only the reader with the highest token
holds the slot, and whoever takes it over ends the other's connection first.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from duly.databases.postgres.changes_assembly import INTENT_PREFIX, Assembly, lsn_text
from duly.databases.postgres.changes_catalog import (
    OLDEST_STREAMING,
    Slot,
    Table,
    captured,
    find_slot,
    find_tables,
    inspect_capture,
    missing_from_publication,
    publication,
    refuse_slot,
    refuse_tables,
)
from duly.databases.postgres.changes_link import connect
from duly.databases.postgres.changes_spool import unreadable
from duly.databases.postgres.changes_stream import PostgresChangeStream
from duly.databases.postgres.database import PostgresDatabase
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    GapError,
    OperatorError,
    PermanentError,
    RetryableError,
    StaleLeaseError,
    UndecodableError,
)
from duly.kernel.changes import Transaction
from duly.kernel.names import check_name
from duly.ports import Clock, Finding
from duly.sources import ChangeFeatures, SourceStatus, TableSpec
from duly.wire.pgoutput import DATA, HEADER_BYTES

__all__ = ["INTENT_PREFIX", "PostgresChanges"]

_TAKE_OVER_SECONDS = 20.0
_AGAIN_SECONDS = 0.05
_SLOT_SECONDS = 60
_PEEK_ROWS = 10_000
_NAME_BYTES = 24
_LOST = {"55000", "58P01"}  # the slot was invalidated; a segment of the log was removed
_GONE = "42704"  # no such slot, or publication at that place of the log
_BUSY = "55006"
_SELF = (
    "SELECT s.system_identifier::text, c.timeline_id, d.oid::int8 "
    "FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d "
    "WHERE d.datname = current_database()"
)
_PEEK = "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %s, VARIADIC %s::text[])"
_READERS = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE %s"
_SERVER = """
SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
  (SELECT setting::int8 / 1000.0 FROM pg_settings WHERE name = 'wal_sender_timeout'),
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn
"""


class PostgresChanges:
    """The change log of one database, as one named reader sees it.

    url: ``postgresql://user:password@host/database`` of a role with REPLICATION, directly: a pooler
    does not pass replication on. reader: the name of the stream. Raises MissingExtraError without
    psycopg, InvalidNameError.
    """

    features = ChangeFeatures(
        native_log=True,
        foreign_writers=True,
        transactions=True,
        intents=True,
        online_snapshot=True,
        truncates=True,
    )

    def __init__(self, url: str, *, reader: str, clock: Clock) -> None:
        self._database = PostgresDatabase(url)
        self._url = self._database.url
        self._reader = check_name(reader, "reader")
        self._clock = clock
        self._identity: str | None = None

    async def identity(self) -> str:
        """As ``ChangeSource.identity``: the cluster, its timeline, the database."""
        async with self._sql() as connection:
            return await self._identify(connection)

    async def prepare(self, tables: Sequence[TableSpec]) -> str:
        """As ``ChangeSource.prepare``: a publication, then a slot; both named after the reader."""
        async with self._sql() as connection:
            name = await self._name(connection)
            found = await find_tables(connection, tables)
            refuse_tables(tables, found)
            await self._publish(connection, name, found)
            slot = await find_slot(connection, name)
            if slot is None:
                await self._make_slot(connection, name)
                slot = await self._slot(connection, name)
            refuse_slot(name, slot)
            return lsn_text(slot.confirmed or 0)

    async def inspect(self, tables: Sequence[TableSpec]) -> Sequence[Finding]:
        """As ``ChangeSource.inspect``."""
        async with self._sql() as connection:
            return await inspect_capture(connection, await self._name(connection), tables)

    async def open(
        self, tables: Sequence[TableSpec], *, position: str, token: int
    ) -> PostgresChangeStream:
        """As ``ChangeSource.open``."""
        side = await self._connect("duly cdc")
        stream: PostgresChangeStream | None = None
        try:
            name = await self._name(side)
            await side.execute(f"SET application_name = '{_label(name, token)}'")
            found = await find_tables(side, tables)
            refuse_tables(tables, found)
            await self._refuse_publication(side, name, found)
            stream = await self._stream(side, name, found, position=position, token=token)
            await self._begin(stream, side, name, position=position, token=token)
        except BaseException as error:
            await (side.close() if stream is None else stream.close())
            mapped = self._database.map_error(error) if isinstance(error, Exception) else error
            if mapped is error:
                raise
            raise mapped from error
        return stream

    async def status(self, position: str) -> SourceStatus:
        """As ``ChangeSource.status``."""
        async with self._sql() as connection:
            name = await self._name(connection)
            slot = await find_slot(connection, name)
            _, _, _, end = await _server(connection)
        lag = max(0, end - int(position, 16)) if position else None
        if slot is None:
            return SourceStatus(position, lsn_text(end), lag, None, None, active=False, detail="-")
        kept = None if slot.restart is None else end - slot.restart
        detail = f"slot {name} {slot.wal_status or ''}".strip()
        if slot.safe_bytes is not None:
            detail += f", {slot.safe_bytes} bytes until it is lost"
        active = slot.active_pid is not None
        return SourceStatus(position, lsn_text(end), lag, None, kept, active, detail)

    async def peek(
        self, tables: Sequence[TableSpec], *, position: str, limit: int
    ) -> Sequence[Transaction]:
        """As ``ChangeSource.peek``: through the slot, so not while a stream is open, and not past
        the transaction with the 10,000th row behind what was confirmed.
        """
        async with self._sql() as connection:
            name = await self._name(connection)
            found = await find_tables(connection, tables)
            given: list[Transaction] = []
            assembly = Assembly(
                await self._identify(connection),
                captured(found),
                start=0,
                give=lambda transaction, size: given.append(transaction),
            )
            for message in await self._peeked(connection, name):
                assembly.feed(bytes([DATA]) + bytes(HEADER_BYTES - 1) + message)
                if given and given[-1].commit <= position:
                    given.pop()
                if len(given) >= limit:
                    break
            return given[:limit]

    async def drop(self) -> None:
        """As ``ChangeSource.drop``."""
        async with self._sql() as connection:
            name = await self._name(connection)
            deadline = self._clock.monotonic() + _TAKE_OVER_SECONDS
            while (slot := await find_slot(connection, name)) is not None:
                if slot.active_pid is None:
                    await connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
                elif self._clock.monotonic() > deadline:
                    raise OperatorError(f"the slot {name} is being read", code="CDC_SLOT_ACTIVE")
                else:
                    await asyncio.sleep(_AGAIN_SECONDS)
            await connection.execute(f"DROP PUBLICATION IF EXISTS {name}")

    # --- connections ------------------------------------------------------------------------------
    async def _connect(self, application: str, *, replication: bool = False) -> Any:
        try:
            return await connect(
                self._url, name=application, replication=replication, own_path=not replication
            )
        except Exception as error:
            raise self._database.map_error(error) from error

    @asynccontextmanager
    async def _sql(self) -> AsyncIterator[Any]:
        connection = await self._connect("duly cdc")
        try:
            yield connection
        except UndecodableError as error:
            raise unreadable(error) from error
        except Exception as error:
            mapped = self._database.map_error(error)
            if mapped is error:
                raise
            raise mapped from error
        finally:
            await connection.close()

    async def _identify(self, connection: Any) -> str:
        system, timeline, database = await _one(connection, _SELF)
        found = f"postgres:{system}:{timeline}:{database}"
        if self._identity not in (None, found):
            text = f"this is {found}, it was {self._identity}: positions mean something else here"
            raise GapError(f"{text}; take a new snapshot", code="CDC_SOURCE_CHANGED")
        self._identity = found
        return found

    async def _name(self, connection: Any) -> str:
        """Of slot and publication. Slots belong to the whole cluster, hence the database."""
        database = (await self._identify(connection)).rpartition(":")[2]
        plain = re.sub("[^a-z0-9_]", "_", self._reader.lower())
        if plain != self._reader or len(plain) > _NAME_BYTES:
            digest = hashlib.sha256(self._reader.encode()).hexdigest()[:8]
            plain = f"{plain[: _NAME_BYTES - 9]}_{digest}"
        return f"duly_{database}_{plain}"

    # --- slot and publication ---------------------------------------------------------------------
    async def _publish(self, connection: Any, name: str, tables: Sequence[Table]) -> None:
        """Make the publication first: the slot would stumble over changes made before it."""
        if await publication(connection, name) is None:
            targets = ", ".join(table.quoted for table in tables)
            what = f"FOR TABLE {targets} " if targets else ""
            statement = f"CREATE PUBLICATION {name} {what}WITH (publish_via_partition_root = true)"
            await self._or_say(connection, statement)
        else:
            for table in await missing_from_publication(connection, name, tables):
                statement = f"ALTER PUBLICATION {name} ADD TABLE {table.quoted}"
                await self._or_say(connection, statement)
        await self._refuse_publication(connection, name, tables)

    async def _or_say(self, connection: Any, statement: str) -> None:
        try:
            await connection.execute(statement)
        except Exception as error:
            if getattr(error, "sqlstate", "") != "42501":
                raise
            text = f"this role may not: {statement}; let the owner of the tables run it"
            raise ConfigurationError(text, code="CDC_NO_RIGHTS") from error

    async def _refuse_publication(
        self, connection: Any, name: str, tables: Sequence[Table]
    ) -> None:
        found = await publication(connection, name)
        if found is None:
            text = f"the publication {name} is gone; start again and take a new snapshot"
            raise GapError(text, code="CDC_PUBLICATION_MISSING")
        if not found[1] and any(table.kind == "p" for table in tables):
            fix = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
            text = f"{name} publishes partitions under their own names; {fix}"
            raise ConfigurationError(text, code="CDC_PARTITIONS")
        if missing := await missing_from_publication(connection, name, tables):
            text = f"{missing[0].spec.name} is not in the publication {name}"
            raise GapError(f"{text}; prepare and take a new snapshot", code="CDC_TABLE_LOST")

    async def _make_slot(self, connection: Any, name: str) -> None:
        level = (await _one(connection, "SHOW wal_level"))[0]
        if level != "logical":
            text = f"wal_level is {level}; ALTER SYSTEM SET wal_level = logical, then restart"
            raise ConfigurationError(text, code="CDC_WAL_LEVEL")
        # Not by the time for locks, which is shorter: it waits for every transaction that is open.
        await connection.execute(f"SET statement_timeout = '{_SLOT_SECONDS}s'")
        await connection.execute("SET lock_timeout = 0")
        try:
            await connection.execute(
                "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name]
            )
        except Exception as error:
            raise self._no_slot(error, name) from error
        finally:
            with suppress(Exception):  # the connection is used for nothing else when it is broken
                await connection.execute("RESET statement_timeout")
                await connection.execute("RESET lock_timeout")

    def _no_slot(self, error: Exception, name: str) -> Exception:
        state = getattr(error, "sqlstate", "")
        if state == "57014":
            return DatabaseUnavailableError(
                f"the slot {name} waits for a transaction that is open for over {_SLOT_SECONDS} s"
                " (see pg_stat_activity, pg_prepared_xacts)"
            )
        if state in ("42501", "53400"):
            fix = "grant REPLICATION" if state == "42501" else "raise max_replication_slots"
            text = f"the slot {name} cannot be made: {str(error).splitlines()[0]}; {fix}"
            return ConfigurationError(text, code="CDC_SLOT_REFUSED")
        return self._database.map_error(error)

    async def _slot(self, connection: Any, name: str) -> Slot:
        slot = await find_slot(connection, name)
        if slot is None:
            text = f"the slot {name} is gone, and with it the log that was not read"
            raise GapError(f"{text}; start again and take a new snapshot", code="CDC_SLOT_MISSING")
        return slot

    # --- into the stream --------------------------------------------------------------------------
    async def _stream(
        self, side: Any, name: str, tables: Sequence[Table], *, position: str, token: int
    ) -> PostgresChangeStream:
        _, replica, silent, end = await _server(side)
        slot = await self._slot(side, name)
        refuse_slot(name, slot)
        at = int(position, 16)
        if at < (slot.confirmed or 0):
            text = (
                f"the server has forgotten what follows {position}: the slot {name} is at "
                f"{lsn_text(slot.confirmed or 0)}; somebody moved it or made it anew"
            )
            raise GapError(f"{text}; take a new snapshot", code="CDC_SLOT_MOVED")
        if at > end:
            text = f"the log ends at {lsn_text(end)}, before the stored position {position}"
            raise GapError(f"{text}: an older copy came back", code="CDC_SOURCE_BEHIND")

        async def verdict(error: Exception) -> Exception:
            return await self._verdict(error, name, token)

        return PostgresChangeStream(
            side,
            source=await self._identify(side),
            tables=tables,
            name=name,
            position=position,
            clock=self._clock,
            url=self._url,
            silent_seconds=silent,
            beats=not replica,
            verdict=verdict,
        )

    async def _begin(
        self, stream: PostgresChangeStream, side: Any, name: str, *, position: str, token: int
    ) -> None:
        """Put out who holds the slot, then start to read."""
        version = (await _server(side))[0]
        command = _command(name, position, version)
        deadline = self._clock.monotonic() + _TAKE_OVER_SECONDS
        while True:
            await self._put_out(side, name, token)
            raw = await self._connect(_label(name, token), replication=True)
            try:
                await stream.start(raw, command)
                return
            except Exception as error:
                busy = getattr(error, "sqlstate", "") == _BUSY
                if not busy or self._clock.monotonic() > deadline:
                    raise await self._verdict(error, name, token) from error
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _put_out(self, side: Any, name: str, token: int) -> None:
        """End the connection of a reader with a lower token. Raises StaleLeaseError."""
        if await _highest(side, name) > token:
            raise StaleLeaseError(f"a later reader has the slot {name}")
        slot = await self._slot(side, name)
        if slot.active_pid is not None:
            await side.execute("SELECT pg_terminate_backend(%s)", [slot.active_pid])

    async def _verdict(self, error: Exception, name: str, token: int) -> Exception:
        """What a failure of the stream means: lost, taken over, or only away."""
        state = getattr(error, "sqlstate", "") or ""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if state in (*_LOST, _GONE):
            code = "CDC_SLOT_MISSING" if state == _GONE else "CDC_SLOT_LOST"
            return GapError(f"{text}; take a new snapshot", code=code)
        mapped = self._database.map_error(error)
        if isinstance(mapped, RetryableError) and await self._taken_over(name, token):
            return StaleLeaseError(f"a later reader has taken the slot {name}")
        if isinstance(mapped, PermanentError) and mapped is not error:
            return GapError(f"the server cannot decode its log: {text}", code="CDC_DECODING_FAILED")
        return mapped

    async def _taken_over(self, name: str, token: int) -> bool:
        """Whether a later reader is there; it stays connected from before it ended us."""
        try:
            async with self._sql() as connection:
                return await _highest(connection, name) > token
        except DulyError:
            return False  # the server is away: that is the news

    async def _peeked(self, connection: Any, name: str) -> list[bytes]:
        version = (await _server(connection))[0]
        slot = await self._slot(connection, name)
        if slot.active_pid is not None:
            text = f"the slot {name} is being read; stop the reader to look at it"
            raise OperatorError(text, code="PEEK_UNSUPPORTED")
        options = ["proto_version", "1", "publication_names", name]
        if version >= OLDEST_STREAMING:
            options += ["messages", "true"]
        cursor = await connection.execute(_PEEK, [name, _PEEK_ROWS, options])
        return [bytes(row[0]) for row in await cursor.fetchall()]


async def _one(connection: Any, sql: str, *values: Any) -> Any:
    return await (await connection.execute(sql, values or None)).fetchone()


async def _server(connection: Any) -> tuple[int, bool, float | None, int]:
    """Version, whether it is a replica, its limit for silent peers, the end of its log."""
    version, replica, silent, end = await _one(connection, _SERVER)
    return int(version), bool(replica), float(silent) or None, int(end)


async def _highest(connection: Any, name: str) -> int:
    """The highest token of the readers of a slot that are connected, -1 without any."""
    rows = await (await connection.execute(_READERS, [f"{name}:%"])).fetchall()
    tokens = [label.rpartition(":")[2] for _, label in rows]
    return max((int(token) for token in tokens if token.isdigit()), default=-1)


def _label(name: str, token: int) -> str:
    return f"{name}:{token}"


def _command(name: str, position: str, version: int) -> str:
    at = int(position, 16)
    protocol = 1 if version < OLDEST_STREAMING else min(4, version // 10_000 - 12)
    options = [f"proto_version '{protocol}'", f"publication_names '\"{name}\"'"]
    if protocol > 1:
        options += ["messages 'true'", "streaming 'on'"]
    where = f"{at >> 32:X}/{at & 0xFFFFFFFF:X}"
    return f'START_REPLICATION SLOT "{name}" LOGICAL {where} ({", ".join(options)})'
