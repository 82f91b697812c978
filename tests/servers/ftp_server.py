"""An FTP server of pyftpdlib in a thread of its own, with TLS or without."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer

USER, PASSWORD = "bank", "correct horse"
JOIN_SECONDS = 20.0


def _ftp_XSHA256(self: Any, path: str) -> None:  # noqa: N802  # pyftpdlib looks for this name
    self.respond(f"250 {sha256(Path(path).read_bytes()).hexdigest().upper()}")


COMMAND = {"perm": "r", "auth": True, "arg": True, "help": "Syntax: XSHA256 <SP> path."}


@contextmanager
def ftp_server(
    folder: Path, *, certificate: Path | None = None, hashes: bool = False, plain: bool = False
) -> Iterator[int]:
    """The port. certificate: with its key in one file; TLS is demanded. plain: without MLST."""
    authorizer = DummyAuthorizer()
    authorizer.add_user(USER, PASSWORD, str(folder), perm="elradfmwT")
    base: Any = TLS_FTPHandler if certificate else FTPHandler
    commands = dict(base.proto_cmds)
    if hashes:
        commands["XSHA256"] = COMMAND
    if plain:
        commands = {k: v for k, v in commands.items() if k not in ("MLST", "MLSD")}
    attributes: dict[str, Any] = {
        "authorizer": authorizer,
        "proto_cmds": commands,
        "banner": "ready",
        "use_sendfile": False,
        "ftp_XSHA256": _ftp_XSHA256,
    }
    if hashes:

        def ftp_FEAT(self: Any, line: str) -> None:  # noqa: N802
            self._extra_feats = sorted({*self._extra_feats, "XSHA256"})
            base.ftp_FEAT(self, line)

        attributes["ftp_FEAT"] = ftp_FEAT
    if certificate:
        attributes |= {
            "certfile": str(certificate),
            "tls_control_required": True,
            "tls_data_required": True,
        }
    loop = IOLoop()
    server = FTPServer(("127.0.0.1", 0), type("Handler", (base,), attributes), ioloop=loop)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            loop.loop(timeout=0.02, blocking=False)
        server.close_all()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        stop.set()
        thread.join(JOIN_SECONDS)
