"""The connection that a server dumps its binary log over: packets in, events out, on a thread.

Owns that thread and the socket while the stream runs; PyMySQL logs in, and has no part in it then:
it would connect again by itself, and from another place.  Invariants: what is taken is taken in
order, and nothing more once the stream has ended; whatever ends it is said once, as one error;
while nobody takes, nothing is read, and the server waits.  What events mean is not known here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from duly.databases.mysql.changes_place import FIRST_OFFSET
from duly.databases.mysql.connection import keep_alive
from duly.databases.mysql.database import MysqlDatabase
from duly.errors import DatabaseUnavailableError

__all__ = [
    "SILENT_SECONDS",
    "TO_ITS_END",
    "Link",
    "arriving",
    "ask_for",
    "connect",
    "made_at",
    "register",
]

SILENT_SECONDS = 30.0
_HEARTBEAT_NS: Final = 2_000_000_000  # what an idle server says at least
_ANSWER_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 7 * 86_400  # of the server, while a handler takes its time
_PIECE_BYTES: Final = 1024 * 1024
_WHOLE: Final = 0xFFFFFF  # a packet of this size goes on in the next one
_REGISTER, _DUMP = 0x15, 0x12
_END: Final = b"\xfe"
_FORMAT: Final = b"\x0f"
_ANNOTATED: Final = 2
TO_ITS_END: Final = 1  # and no further
_SESSION: Final = (
    "SET SESSION time_zone = '+00:00', sql_mode = 'NO_ENGINE_SUBSTITUTION', "
    "lock_wait_timeout = 10, innodb_lock_wait_timeout = 10"
)
_DUMPING: Final = (
    "SET @mariadb_slave_capability = 4, @master_binlog_checksum = @@GLOBAL.binlog_checksum, "
    "@source_binlog_checksum = @@GLOBAL.binlog_checksum, "
    f"@master_heartbeat_period = {_HEARTBEAT_NS}, @source_heartbeat_period = {_HEARTBEAT_NS}, "
    f"net_write_timeout = {_PATIENCE_SECONDS}"
)


def connect(database: MysqlDatabase, **options: Any) -> Any:
    """An open connection of PyMySQL's in autocommit, with the session that values are read under.

    Raises PyMySQL's errors.
    """
    raw = database.driver.connect(
        **{
            **database.arguments(),
            "autocommit": True,
            "connect_timeout": 10,
            "read_timeout": _ANSWER_SECONDS,
            "write_timeout": _ANSWER_SECONDS,
            **options,
        }
    )
    keep_alive(raw)
    with raw.cursor() as cursor:
        cursor.execute(_SESSION)
    return raw


def register(raw: Any, server_id: int, label: str) -> None:
    """Be known to the server as a reader. label: shown in SHOW REPLICA HOSTS.

    Raises PyMySQL's errors.
    """
    host = label.encode("ascii")
    head = struct.pack("<IB", server_id, len(host)) + host
    raw._execute_command(_REGISTER, head + struct.pack("<BBHII", 0, 0, 0, 0, 0))
    raw._read_packet()


class Link:
    """A stream over one connection, which is closed with it.

    take: called on the link's thread with the events that came, each whole, in their order; reading
    goes on when it returns. failed: called there once with the error that ended the stream.
    """

    def __init__(
        self, raw: Any, *, take: Callable[[list[bytes]], None], failed: Callable[[Exception], None]
    ) -> None:
        self._raw = raw
        self._take, self._failed = take, failed
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, file: str, offset: int, *, server_id: int, annotated: bool) -> None:
        """Ask for the log from a place on, and read it. annotated: with the statements' own text.

        Raises PyMySQL's errors; that the place is not there, the stream says.
        """
        ask_for(self._raw, file, offset, server_id=server_id, flags=_ANNOTATED * annotated)
        self._raw._sock.settimeout(SILENT_SECONDS)
        self._thread = threading.Thread(target=self._run, name="duly cdc binlog", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Leave the server at once, from any thread; the link's own ends by itself. Idempotent."""
        self._closing = True
        wire = self._raw._sock
        if wire is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                wire.shutdown(socket.SHUT_RDWR)
        if self._thread is None or self._thread is threading.current_thread():
            self._raw._force_close()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the thread; not on the event loop."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    # --- on the thread ----------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            for events in arriving(self._raw):
                self._take(events)
                if self._closing:
                    return
            raise DatabaseUnavailableError("the server ended its dump of the log")
        except Exception as error:  # noqa: BLE001  # whatever ends the stream is told, never lost
            if not self._closing:
                self._failed(error)
        finally:
            self._raw._force_close()


def ask_for(raw: Any, file: str, offset: int, *, server_id: int, flags: int) -> None:
    """Let the server send its log over a connection. Raises PyMySQL's errors."""
    with raw.cursor() as cursor:
        cursor.execute(_DUMPING)
    raw._execute_command(_DUMP, struct.pack("<IHI", offset, flags, server_id) + file.encode())


def arriving(raw: Any) -> Iterator[list[bytes]]:
    """What the server sends, as it comes: events, each whole. Ends where the server says that this
    is all; raises what it says instead, DatabaseUnavailableError when it is gone.
    """
    buffer, parts = bytearray(), []
    while True:
        buffer += _received(raw._sock)
        events: list[bytes] = []
        for packet in _packets(buffer):
            parts.append(packet)
            if len(packet) == _WHOLE:
                continue
            whole, parts = b"".join(parts) if len(parts) > 1 else packet, []
            if whole[:1] != b"\0":
                yield events
                if whole[:1] == _END:
                    return
                raise _said(whole)
            events.append(whole[1:])
        if events:
            yield events


def made_at(database: MysqlDatabase, file: str) -> int:
    """When a log file was made, in seconds since 1970. Raises PyMySQL's errors."""
    raw = connect(database)
    try:
        ask_for(raw, file, FIRST_OFFSET, server_id=0, flags=TO_ITS_END)
        for events in arriving(raw):
            for event in events:
                if event[4:5] == _FORMAT:
                    return int.from_bytes(event[:4], "little")
        raise DatabaseUnavailableError(f"the server did not say when {file} was made")
    finally:
        raw._force_close()


def _received(wire: Any) -> bytes:
    try:
        data: bytes = wire.recv(_PIECE_BYTES)
    except TimeoutError as error:
        text = f"the server said nothing for {SILENT_SECONDS:.0f} s"
        raise DatabaseUnavailableError(text) from error
    except OSError as error:
        text = f"the connection broke: {error.strerror or type(error).__name__}"
        raise DatabaseUnavailableError(text) from error
    if not data:
        raise DatabaseUnavailableError("the server ended the stream without a word")
    return data


def _said(packet: bytes) -> Exception:
    """The error in a packet, as PyMySQL raises it."""
    import pymysql

    found: Exception = DatabaseUnavailableError("the server sent a packet that is none")
    try:
        pymysql.err.raise_mysql_exception(packet)
    except pymysql.Error as error:
        found = error
    except (struct.error, IndexError):
        pass  # what is said of it stands above
    return found


def _packets(buffer: bytearray) -> Sequence[bytes]:
    """Take the whole packets out of the buffer; the beginning of the next one stays."""
    found, at, size = [], 0, len(buffer)
    while size - at >= 4:
        end = at + 4 + int.from_bytes(buffer[at : at + 3], "little")
        if end > size:
            break
        found.append(bytes(buffer[at + 4 : end]))
        at = end
    del buffer[:at]
    return found
