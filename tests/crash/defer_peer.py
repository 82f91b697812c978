"""The peer of the deferred calls: a server in the driver's process, which is never killed.

By chance it refuses, acts and answers, acts and says nothing, or says nothing at all.  Under a key
it has acted on it gives the old receipt and does not act again.  Invariant: what it was asked and
what it did is in its journal, with fsync, before anybody can know."""

from __future__ import annotations

import json
import random
import socketserver
import threading
from pathlib import Path
from typing import Any

from duly.testing.journal import Journal

REFUSES, MUTE, HALF = 0.3, 0.08, 0.2  # shares of what comes; the rest is answered well
TROUBLED = {"caller": 1.0, "worker": 0.6}  # the caller's calls are the ones to be deferred


class Peer:
    """The server. healed: answers everything well from now on."""

    def __init__(self, journal: Path, seed: int) -> None:
        self._journal = Journal(journal)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._receipts: dict[str, str] = {}
        self._acts = 0
        self.healed = False
        peer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline()
                if line.endswith(b"\n"):
                    self.wfile.write(peer.answer(json.loads(line)))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, asked: dict[str, Any]) -> bytes:
        """What it says to one request; empty for nothing."""
        what = {name: asked[name] for name in ("op", "key", "who")}
        with self._lock:
            draw = self._chance.random() / (1e-9 if self.healed else TROUBLED[asked["who"]])
            self._journal.append("ask", by=asked["pid"], **what)
            if draw < REFUSES:
                return b"refused\n"
            if draw < REFUSES + MUTE:
                return b""
            receipt = self._receipts.get(asked["key"])
            if receipt is None:
                self._acts += 1
                receipt = f"receipt-{self._acts}"
                self._journal.append("act", **what)
                if asked["key"]:
                    self._receipts[asked["key"]] = receipt
            return b"" if draw < REFUSES + MUTE + HALF else f"{receipt}\n".encode()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._journal.close()
