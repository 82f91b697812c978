"""Who reads a server's log: readers make themselves known there, and put older ones out.

Owns the number and the label of a reader.  A server ends the older one of two connections that dump
its log under one number; so the number stands for the reader's name, and the label, which SHOW
REPLICA HOSTS shows, says whose it is, with which token, on which connection.  Invariants: a reader
with a lower token never begins to read while one with a higher token does; nobody else's connection
is ended.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from duly.databases.mysql.changes_catalog import Ask, Server
from duly.errors import ConfigurationError, DatabaseUnavailableError, StaleLeaseError

__all__ = ["Readers", "grant_of"]

_AGAIN_SECONDS: Final = 0.02
_TAKE_OVER_SECONDS: Final = 20.0
_OURS: Final = 0x8000_0000  # numbers of servers that people choose are lower
_NAME_BYTES: Final = 16
_GONE: Final = 1094
_NOT_MINE: Final = 1095
_DENIED: Final = (1044, 1045, 1142, 1227)


class _Reader(NamedTuple):
    """A reader of ours, as it is known to the server."""

    token: int
    connection: int


class Readers:
    """The readers of one name. schema: of the database; reader: the name of the stream."""

    def __init__(self, schema: str, reader: str) -> None:
        digest = hashlib.sha256(f"{schema}\0{reader}".encode()).digest()
        self.number = _OURS | int.from_bytes(digest[:4], "big") >> 1
        plain = re.sub("[^A-Za-z0-9_]", "_", reader)[:_NAME_BYTES]
        self._label = f"duly:{plain}:{digest[4:8].hex()}"

    def label(self, token: int, connection: int) -> str:
        """What the server shows of a reader. connection: its number at the server."""
        return f"{self._label}:{token}:{connection}"

    def known(self, ask: Ask, server: Server) -> list[_Reader]:
        """Those that are there now.

        Raises ConfigurationError: this may not be looked at (CDC_NO_RIGHTS); the number is somebody
        else's (CDC_SERVER_ID_IN_USE).
        """
        found = []
        for number, host in self._hosts(ask, server):
            if number != self.number:
                continue
            label, *numbers = str(host).rsplit(":", 2)
            if label != self._label or len(numbers) != 2:
                text = f"server id {number} is in use by a replica at {host!r:.80}"
                fix = "give that one another server_id, or the source another name"
                raise ConfigurationError(f"{text}; {fix}", code="CDC_SERVER_ID_IN_USE")
            found.append(_Reader(int(numbers[0]), int(numbers[1])))
        return found

    def _hosts(self, ask: Ask, server: Server) -> Sequence[tuple[Any, Any]]:
        newer = not server.mariadb and server.version >= (8, 1)
        try:
            rows = ask("SHOW REPLICAS" if newer else "SHOW SLAVE HOSTS")
        except Exception as error:
            if error.args[:1] and error.args[0] in _DENIED:
                text = f"this user may not see who reads the log; {grant_of(server)}"
                raise ConfigurationError(text, code="CDC_NO_RIGHTS") from error
            raise
        return [(row[0], row[1]) for row in rows]

    def taken_over(self, ask: Ask, server: Server, token: int) -> bool:
        """Whether a reader with a higher token is there."""
        return any(one.token > token for one in self.known(ask, server))

    def put_out(self, ask: Ask, server: Server, *, token: int, connection: int) -> None:
        """End the connections of all others, and wait until they are gone. The caller is known.

        Raises StaleLeaseError for a later reader, ConfigurationError, DatabaseUnavailableError.
        """
        deadline = time.monotonic() + _TAKE_OVER_SECONDS
        while True:
            others = [one for one in self.known(ask, server) if one.connection != connection]
            if any(one.token > token for one in others):
                raise StaleLeaseError("a later reader has the log")
            if not others:
                return
            if time.monotonic() > deadline:
                raise DatabaseUnavailableError("an older reader of the log does not let go")
            for other in others:
                self._kill(ask, other.connection)
            time.sleep(_AGAIN_SECONDS)

    def _kill(self, ask: Ask, connection: int) -> None:
        try:
            ask(f"KILL {connection}")
        except Exception as error:
            number = error.args[0] if error.args else 0
            if number == _NOT_MINE:
                text = f"connection {connection} reads as another user; end it: KILL {connection}"
                raise ConfigurationError(text, code="CDC_NO_RIGHTS") from error
            if number != _GONE:
                raise


def grant_of(server: Server) -> str:
    """The statement that gives the rights that reading the log takes."""
    if server.mariadb:
        rights = "REPLICATION SLAVE, REPLICATION MASTER ADMIN, BINLOG MONITOR"
    else:
        rights = "REPLICATION SLAVE, REPLICATION CLIENT"
    return f"GRANT {rights} ON *.* TO this user, and SELECT on the tables"
