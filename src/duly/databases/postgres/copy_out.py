"""``COPY ... TO STDOUT`` on a connection of psycopg, as blocks of rows.

Owns two ways that give the same: the server's messages read from the socket, and libpq's calls
where TLS is between.  libpq hands rows over one by one, which takes twice as long as all else.
Invariant: when an answer was not read to its end the connection is closed, because the rest of it
is still on its way.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from duly.errors import DatabaseUnavailableError
from duly.wire.pgcopy import CopyAnswer, CopyBlock

__all__ = ["Copying", "copy_out"]

SILENCE_SECONDS = 3600  # a sort of everything comes before the first row
_RECEIVE_BYTES = 256 * 1024
# Each call that gives up the interpreter's lock waits to have it back: few large ones are better.
_PIECE_BYTES = 1024 * 1024
_HEAD_BYTES = 5

Blocks = Generator[CopyBlock, None, None]


class Copying(NamedTuple):
    """How an answer is read. block_bytes: a block ends with the row that reaches this. whole:
    nobody asks for single rows. mapped: a driver's error as one of ours. abandon: closes the
    connection.
    """

    block_bytes: int
    whole: bool
    mapped: Callable[[Exception], Exception]
    abandon: Callable[[], None]


def copy_out(raw: Any, text: str, how: Copying) -> Blocks:
    """The rows of a COPY, in blocks. Raises what ``how.mapped`` gives, DatabaseUnavailableError."""
    return _by_libpq(raw, text, how) if raw.pgconn.ssl_in_use else _by_messages(raw, text, how)


def _by_messages(raw: Any, text: str, how: Copying) -> Blocks:
    answer = CopyAnswer(how.block_bytes, piece_bytes=_PIECE_BYTES if how.whole else 0)
    wire = socket.socket(fileno=os.dup(raw.pgconn.socket))
    try:
        wire.settimeout(SILENCE_SECONDS)
        body = text.encode() + b"\0"
        wire.sendall(b"Q" + (len(body) + 4).to_bytes(4, "big") + body)
        while not answer.done:
            data = wire.recv(_RECEIVE_BYTES)
            if not data:
                raise DatabaseUnavailableError("the connection was lost while rows came")
            yield from answer.feed(data)
        if answer.refusal:
            raise _refused(answer.refusal, how)
        if (block := answer.last()) is not None:
            yield block
    except OSError as error:
        raise DatabaseUnavailableError(f"while rows came: {type(error).__name__}") from error
    finally:
        wire.close()
        if not answer.done:
            how.abandon()


def _refused(fields: dict[str, str], how: Copying) -> Exception:
    import psycopg

    try:
        kind = psycopg.errors.lookup(fields.get("C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    error = kind(fields.get("M", ""))
    mapped = how.mapped(error)
    mapped.__cause__ = error
    return mapped


def _by_libpq(raw: Any, text: str, how: Copying) -> Blocks:
    from psycopg import Error

    done = False
    try:
        rows = yield from _copied(raw.pgconn, text, how.block_bytes)
        if rows:
            yield _block(rows)
        done = True
    except Error as error:
        raise how.mapped(error) from error
    finally:
        if not done:
            how.abandon()


def _copied(
    connection: Any, text: str, block_bytes: int
) -> Generator[CopyBlock, None, list[bytes]]:
    from psycopg.errors import error_from_result
    from psycopg.pq import ExecStatus

    rows: list[bytes] = []
    left = block_bytes
    connection.send_query(text.encode())
    _wait(connection)
    result = connection.get_result()
    if result.status != ExecStatus.COPY_OUT:
        raise error_from_result(result)
    while True:
        size, data = connection.get_copy_data(1)
        if size < 0:
            break
        if size == 0:
            _wait(connection)
            continue
        rows.append(bytes(data))
        left -= size + _HEAD_BYTES
        if left <= 0:
            yield _block(rows)
            rows, left = [], block_bytes
    while (result := connection.get_result()) is not None:
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
    return rows


def _block(rows: list[bytes]) -> CopyBlock:
    return CopyBlock(len(rows), rows[0], rows[-1], rows)


def _wait(connection: Any) -> None:
    """Until something new has come. libpq may hold whole messages of a TLS record: it is asked
    for them before anybody waits on the socket.
    """
    connection.flush()
    if not select.select([connection.socket], [], [], SILENCE_SECONDS)[0]:
        raise DatabaseUnavailableError("no row came for an hour")
    connection.consume_input()
    while connection.is_busy():
        if not select.select([connection.socket], [], [], SILENCE_SECONDS)[0]:
            raise DatabaseUnavailableError("no row came for an hour")
        connection.consume_input()
