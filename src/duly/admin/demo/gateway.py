"""The SMS gateway: the outside system that cannot take part in anybody's transaction.

Owns both ends: a loopback HTTP server that is never killed and remembers every idempotency key, and
the client that the handler calls.  The invariant a good provider keeps: a key that comes again is
answered from memory, nothing is sent for it.  The server counts both, as the evidence of the demo:
what was asked, and what was really sent to whom.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

__all__ = ["GatewayError", "GatewayRecord", "GatewayServer", "SmsGateway"]

_BODY_BYTES_MAX = 10_000
_CALL_TIMEOUT_SECONDS = 5.0
_IDLE_TIMEOUT_SECONDS = 120.0
_OK = 200


class GatewayError(Exception):
    """The gateway did not take the message. It is asked again under the same key."""


class GatewayRecord(NamedTuple):
    """What the server saw. asked: calls by key. sent: (key, flight) of each message really sent."""

    asked: dict[str, int]
    sent: list[tuple[str, int]]

    @property
    def repeated(self) -> int:
        """Keys that were asked more than once."""
        return sum(times > 1 for times in self.asked.values())


class GatewayServer:
    """The server, in threads of the process that starts it; use as a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._receipts: dict[str, str] = {}
        self._sent: list[tuple[str, int]] = []
        self._http = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._http.serve_forever, name="sms-gateway")
        self._thread.daemon = True

    @property
    def port(self) -> int:
        """Where it listens, on the loopback interface only."""
        return int(self._http.server_address[1])

    @property
    def sent(self) -> int:
        """How many messages it has sent."""
        return len(self._sent)

    def record(self) -> GatewayRecord:
        """Everything it saw so far."""
        with self._lock:
            return GatewayRecord(dict(self._asked), list(self._sent))

    def take(self, key: str, flight_id: int) -> str:
        """Send a message, or answer from memory when the key is known; returns the receipt."""
        with self._lock:
            self._asked[key] += 1
            if key not in self._receipts:
                self._sent.append((key, flight_id))
                self._receipts[key] = f"sms-{len(self._sent)}"
            return self._receipts[key]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a killed worker's connections must not hold up the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that dies in the middle of a call is what the demo is about."""


def _handler_of(server: GatewayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _IDLE_TIMEOUT_SECONDS
        disable_nagle_algorithm = True
        wbufsize = -1  # one packet for headers and body

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            key = self.headers.get("Idempotency-Key", "")
            if not key or not 0 < size <= _BODY_BYTES_MAX:
                self._answer(400, {"error": "needs a body and an Idempotency-Key"})
                self.close_connection = True
                return
            flight_id = int(json.loads(self.rfile.read(size))["flight_id"])
            self._answer(_OK, {"receipt": server.take(key, flight_id)})

        def _answer(self, status: int, value: dict[str, str]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the gateway counts, it does not print."""

    return Handler


class SmsGateway:
    """The client that handlers call; one kept-alive connection per thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = threading.local()

    def send(self, flight_id: int, delay_minutes: int, *, idempotency_key: str) -> str:
        """Have the passengers of a flight told; returns the gateway's receipt.

        Guarantee: one message per key. On failure: GatewayError; it may have been sent.
        Idempotence: the same key gives the same receipt.
        """
        body = json.dumps({"flight_id": flight_id, "text": f"{delay_minutes} minutes late"})
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        connection = self._connection()
        try:
            connection.request("POST", "/messages", body, headers)
            response = connection.getresponse()
            answer = response.read(_BODY_BYTES_MAX)
        except (OSError, HTTPException) as error:
            connection.close()
            raise GatewayError(type(error).__name__) from error
        if response.status != _OK:
            raise GatewayError(f"status {response.status}")
        return str(json.loads(answer)["receipt"])

    def _connection(self) -> HTTPConnection:
        found: HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            found = HTTPConnection("127.0.0.1", self._port, timeout=_CALL_TIMEOUT_SECONDS)
            self._local.connection = found
        return found
