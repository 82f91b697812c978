"""The change source of a MySQL or MariaDB: its binary log, read as a replica reads it.

Owns one reader and the way into the stream.  Nothing is made at the server: it keeps its log by its
own clock, and a position that is older than the log is a gap.  Invariants: a position is trusted
only in the log it was taken from, known by file, offset and the time the file was made; only the
reader with the highest token reads, and whoever takes over ends the other's connection first.
Copies of a server have logs of their own: behind a failover the stream begins anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

from duly.databases.mysql.changes_assembly import Assembly, Captured
from duly.databases.mysql.changes_catalog import (
    INTENT_TABLE,
    Ask,
    Log,
    Server,
    Table,
    find_log,
    find_server,
    find_tables,
    inspect_capture,
    refuse_server,
    refuse_tables,
    rows_of,
)
from duly.databases.mysql.changes_chunk import TableChunks
from duly.databases.mysql.changes_link import (
    TO_ITS_END,
    Link,
    arriving,
    ask_for,
    connect,
    made_at,
    register,
)
from duly.databases.mysql.changes_place import (
    FIRST_OFFSET,
    Place,
    Position,
    file_name,
    file_number,
)
from duly.databases.mysql.changes_readers import Readers, grant_of
from duly.databases.mysql.changes_spool import unreadable
from duly.databases.mysql.changes_stream import MysqlChangeStream
from duly.databases.mysql.database import MysqlDatabase
from duly.databases.mysql.failures import number_of
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DulyError,
    GapError,
    RetryableError,
    StaleLeaseError,
    UndecodableError,
)
from duly.kernel.changes import Transaction
from duly.kernel.names import check_name
from duly.ports import Clock, Finding
from duly.sources import ChangeFeatures, SourceStatus, TableSpec

__all__ = ["MysqlChanges"]

T = TypeVar("T")
_XA_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 0.02
_SAYS_NO_PLACES: Final = (11, 4)  # from there on events of a transaction do not say where they end
_UNREADABLE: Final = 1236
_SAME_READER: Final = (4052,)
_DENIED: Final = (1044, 1045, 1142, 1227)
_XA_UNSEEN: Final = (1227, 1401)


class _Known(NamedTuple):
    """What is asked of the server before anything else."""

    ask: Ask
    server: Server
    log: Log
    tables: list[Table]


class MysqlChanges:
    """The change log of one server, as one named reader sees the tables of one database in it.

    url: ``mysql://user:password@host/database``, or ``mariadb://``; directly, not through a proxy.
    reader: the name of the stream. Raises MissingExtraError without PyMySQL, InvalidNameError.
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
        self._database = MysqlDatabase(url)
        self._schema = self._database.schema
        self._readers = Readers(self._schema, check_name(reader, "reader"))
        self._clock = clock
        self._prepared = False
        self._made: dict[str, int] = {}

    async def identity(self) -> str:
        """As ``ChangeSource.identity``: the server, and the database in it."""

        def asked(raw: Any) -> str:
            return self._identity(find_server(rows_of(raw)))

        return await self._on_thread(asked)

    async def prepare(self, tables: Sequence[TableSpec]) -> str:
        """As ``ChangeSource.prepare``: nothing is made, everything is checked."""

        def checked(raw: Any) -> str:
            known = self._known(raw, tables)
            refuse_server(known.server)
            refuse_tables(tables, known.tables, known.log)
            self._readers.known(known.ask, known.server)
            return self._beginning(known).text

        begin = await self._on_thread(checked)
        self._prepared = True
        return begin

    async def inspect(self, tables: Sequence[TableSpec]) -> Sequence[Finding]:
        """As ``ChangeSource.inspect``."""

        def inspected(raw: Any) -> Sequence[Finding]:
            return inspect_capture(rows_of(raw), tables, schema=self._schema)

        return await self._on_thread(inspected)

    async def open(
        self, tables: Sequence[TableSpec], *, position: str, token: int
    ) -> MysqlChangeStream:
        """As ``ChangeSource.open``."""
        begin = Position.parse(position)
        # The thread's own connection: it is known to the server before it looks for others.
        raw = await asyncio.to_thread(self._connected)
        stream: MysqlChangeStream | None = None
        try:
            known = await self._on_thread(
                lambda side: self._admitted(side, raw, tables=tables, token=token)
            )
            self._refuse_gone(known, begin)
            stream = self._stream(known, begin, token)
            link = Link(raw, take=stream.take, failed=stream.fail)
            stream.follow(link)
            await asyncio.to_thread(self._start, link, known, begin.start)
        except BaseException as error:
            await (stream.close() if stream is not None else asyncio.to_thread(raw._force_close))
            mapped = self._mapped(error) if isinstance(error, Exception) else error
            if mapped is error:
                raise
            raise mapped from error
        return stream

    async def status(self, position: str) -> SourceStatus:
        """As ``ChangeSource.status``."""

        def asked(raw: Any) -> SourceStatus:
            ask = rows_of(raw)
            server = find_server(ask)
            log = find_log(ask, server)
            sizes = _sizes(ask)
            end = self._end(log, known=True)
            lag = None
            if position:
                here = Position.parse(position).place
                lag = sum(size for number, size in sizes.items() if number >= here.file)
                lag = max(0, lag - here.offset - (sizes.get(log.file, 0) - log.offset))
            detail = f"{file_name(log.base, log.file)}:{log.offset}, {len(sizes)} files kept"
            active = bool(self._readers.known(ask, server))
            return SourceStatus(position, end.text, lag, None, None, active, detail)

        return await self._on_thread(asked)

    async def peek(
        self, tables: Sequence[TableSpec], *, position: str, limit: int
    ) -> Sequence[Transaction]:
        """As ``ChangeSource.peek``: over a connection of its own, up to the end of the log."""

        def peeked(raw: Any) -> Sequence[Transaction]:
            known = self._known(raw, tables)
            first = min(_sizes(known.ask), default=known.log.file)
            oldest = Position(Place(first, FIRST_OFFSET))
            begin = Position.parse(position) if position else oldest
            self._refuse_gone(known, begin)
            given: list[Transaction] = []
            assembly = self._assembly(
                known, begin, lambda one, size: given.append(one), looking=not position
            )
            place = begin.start
            name = file_name(known.log.base, place.file)
            ask_for(raw, name, place.offset, server_id=0, flags=TO_ITS_END)
            for events in arriving(raw):
                for event in events:
                    assembly.feed(event)
                    if len(given) >= limit:
                        return given
            return given

        return await self._on_thread(peeked)

    async def drop(self) -> None:
        """As ``ChangeSource.drop``: there is nothing at the server."""
        self._prepared = False

    # --- connections ------------------------------------------------------------------------------
    async def _on_thread(self, work: Callable[[Any], T]) -> T:
        """Do something over a connection of its own, off the loop."""

        def done() -> T:
            with self._connection() as raw:
                return work(raw)

        return await asyncio.to_thread(done)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        raw = self._connected()
        try:
            yield raw
        except Exception as error:
            mapped = self._mapped(error)
            if mapped is error:
                raise
            raise mapped from error
        finally:
            raw._force_close()

    def _connected(self) -> Any:
        try:
            return connect(self._database)
        except Exception as error:
            raise self._mapped(error) from error

    def _mapped(self, error: Exception) -> Exception:
        if isinstance(error, UndecodableError):
            return unreadable(error)
        if number_of(error) == _UNREADABLE:
            return _lost(error)
        return self._database.map_error(error)

    # --- what the server says ---------------------------------------------------------------------
    def _identity(self, server: Server) -> str:
        return f"{server.name}:{self._schema}"

    def _known(self, raw: Any, tables: Sequence[TableSpec]) -> _Known:
        ask = rows_of(raw)
        server = find_server(ask)
        log = find_log(ask, server)
        return _Known(ask, server, log, find_tables(ask, tables, schema=self._schema))

    def _end(self, log: Log, *, known: bool = False) -> Place:
        """The end of the log. known: as far as was asked before about when its file was made."""
        name = file_name(log.base, log.file)
        if not (known and name in self._made):
            self._made = {name: made_at(self._database, name)}
        return Place(log.file, log.offset, self._made[name])

    def _beginning(self, known: _Known) -> Position:
        """Where a new reader begins: at the end. An XA transaction that is prepared there and not
        decided began before it; for those that are decided soon the log is read from a little
        earlier, where they are seen.
        """
        earlier = known.log  # it was asked for before what is prepared
        waiting = _prepared(known.ask)
        deadline = time.monotonic() + _XA_SECONDS
        while waiting and time.monotonic() < deadline:
            time.sleep(_AGAIN_SECONDS)
            waiting &= _prepared(known.ask)
        place = self._end(find_log(known.ask, known.server))
        if place.order == (earlier.file, earlier.offset):
            return Position(place)
        made = place.made if place.file == earlier.file else 0
        return Position(place, Place(earlier.file, earlier.offset, made))

    # --- into the stream --------------------------------------------------------------------------
    def _admitted(self, side: Any, raw: Any, *, tables: Sequence[TableSpec], token: int) -> _Known:
        """Be known as a reader, and the only one."""
        known = self._known(side, tables)
        connection = raw.thread_id()
        try:
            register(raw, self._readers.number, self._readers.label(token, connection))
        except Exception as error:
            if number_of(error) not in _DENIED:
                raise
            text = f"this user may not read the log; {grant_of(known.server)}"
            raise ConfigurationError(text, code="CDC_NO_RIGHTS") from error
        self._readers.put_out(known.ask, known.server, token=token, connection=connection)
        if not self._prepared:
            text = "nothing was checked; prepare the source first"
            raise ConfigurationError(text, code="CDC_NOT_PREPARED")
        refuse_server(known.server)
        refuse_tables(tables, known.tables, known.log)
        return known

    def _refuse_gone(self, known: _Known, begin: Position) -> None:
        """Raise GapError for a position that the log does not reach, or no longer has."""
        place, log = begin.place, known.log
        end = (log.file, log.offset)
        if place.order > end:
            text = f"the log ends at {file_name(log.base, log.file)}:{log.offset}, before the"
            text += (
                f" stored position in file {place.file}: an older copy came back, or RESET MASTER"
            )
            raise GapError(
                f"{text}; see `duly cdc rewind APP start --yes`", code="CDC_SOURCE_BEHIND"
            )

    def _start(self, link: Link, known: _Known, place: Place) -> None:
        annotated = known.server.mariadb and known.server.version >= _SAYS_NO_PLACES
        name = file_name(known.log.base, place.file)
        link.start(name, place.offset, server_id=self._readers.number, annotated=annotated)

    def _stream(self, known: _Known, begin: Position, token: int) -> MysqlChangeStream:
        def chunks_of(spec: TableSpec) -> TableChunks | None:
            found = (table for table in known.tables if table.spec.name == spec.name)
            table = next(found, None)
            return None if table is None else TableChunks(self._database, table, known.server)

        async def verdict(error: Exception) -> Exception:
            return await self._verdict(error, token)

        return MysqlChangeStream(
            position=begin,
            clock=self._clock,
            assemble=lambda give: self._assembly(known, begin, give),
            snapshot_of=chunks_of,
            verdict=verdict,
        )

    def _assembly(
        self,
        known: _Known,
        begin: Position,
        give: Callable[[Transaction, int], None],
        *,
        looking: bool = False,
    ) -> Assembly:
        tables = {
            (table.schema, table.name): Captured(
                table.spec,
                table.primary_key,
                {one.name: one.type for one in table.columns},
                frozenset(one.name for one in table.columns if one.generated),
            )
            for table in known.tables
        }
        return Assembly(
            self._identity(known.server),
            tables,
            intents=(self._schema, INTENT_TABLE),
            position=begin,
            give=give,
            looking=looking,
        )

    async def _verdict(self, error: Exception, token: int) -> Exception:
        """What a failure of the stream means: lost, taken over, or only away."""
        number = number_of(error)
        mapped = self._mapped(error)
        if number in _SAME_READER or (number == _UNREADABLE and "same server" in str(error)):
            mapped = DatabaseUnavailableError("another reader took this one's place at the server")
        if isinstance(mapped, RetryableError):
            try:
                if await self._on_thread(lambda raw: self._taken_over(raw, token)):
                    return StaleLeaseError("a later reader has taken the log")
            except ConfigurationError as found:
                return found
            except DulyError:
                return mapped  # the server is away: that is the news
        return mapped

    def _taken_over(self, raw: Any, token: int) -> bool:
        ask = rows_of(raw)
        return self._readers.taken_over(ask, find_server(ask), token)


def _sizes(ask: Ask) -> dict[int, int]:
    """The files that are kept, by number, with their bytes."""
    return {file_number(row[0]): int(row[1]) for row in ask("SHOW BINARY LOGS")}


def _prepared(ask: Ask) -> set[Any]:
    """The XA transactions that wait for their decision, as far as this user may see them."""
    try:
        return {tuple(row) for row in ask("XA RECOVER")}
    except Exception as error:
        if number_of(error) not in _XA_UNSEEN:
            raise
        return set()


def _lost(error: Exception) -> GapError:
    """The server cannot send what was asked for. It has one number for this and many texts."""
    text = f"{error.args[-1]}"[:300]
    said = f"({text}); see `duly cdc rewind APP start --yes`"
    if "first log file" in text or "purged" in text:
        return GapError(f"the server dropped log that was not read {said}", code="CDC_PURGED")
    if "impossible position" in text:
        return GapError(f"the log ends before the position {said}", code="CDC_SOURCE_BEHIND")
    return GapError(f"the server cannot send its log {said}", code="CDC_LOG_UNREADABLE")
