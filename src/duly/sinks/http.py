"""One kept connection to a JSON API.

Owns the connection, its limits of time and size, and what the failures of a network mean.  The
invariants: a connection with an unanswered request is closed, never used again; a request is never
sent twice by itself; no text shows the password, and redirects are not followed.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit

from duly.errors import ConfigurationError, SinkUnavailableError
from duly.wire.urls import redact

__all__ = ["HttpPeer"]

CALL_SECONDS = 30.0
IDLE_SECONDS = 4.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024


class HttpPeer:
    """An HTTP server. url: with user and password where it wants them. ca_file: certificates to
    trust besides the system's. Raises ConfigurationError for a bad URL.
    """

    def __init__(self, url: str, *, ca_file: str | None = None) -> None:
        self.shown = redact(url)
        try:
            at = urlsplit(url)
            self._port = at.port
        except ValueError as error:
            raise ConfigurationError(f"{self.shown} is no URL", code="SINK_URL") from error
        if at.scheme not in ("http", "https") or not at.hostname or at.query:
            text = f"{self.shown}: a search engine is at http://host:port or https://host:port"
            raise ConfigurationError(text, code="SINK_URL")
        self._host, self._path, self._tls = at.hostname, at.path.rstrip("/"), at.scheme == "https"
        self._ca_file = ca_file
        self._headers = {"Accept": "application/json"}
        if at.username is not None:
            pair = f"{unquote(at.username)}:{unquote(at.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def call(
        self, verb: str, path: str, body: str | None = None, *, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Ask, and give status and answer. Raises SinkUnavailableError where none came: what was
        asked may have been done.
        """
        headers = self._headers if body is None else {**self._headers, "Content-Type": kind}
        data = None if body is None else body.encode()
        connection = self._connected()
        try:
            connection.request(verb, self._path + path, data, headers)
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SinkUnavailableError(f"{self.shown}: {type(error).__name__}") from error
        self._used = time.monotonic()
        if len(text) > ANSWER_BYTES_MAX:
            self.close()
            raise SinkUnavailableError(f"{self.shown}: the answer is too long")
        return response.status, _decoded(text)

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> http.client.HTTPConnection:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self.close()  # servers end an idle connection about when we would use it
        if self._connection is None:
            if self._tls:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=CALL_SECONDS, context=self._trust()
                )
            else:
                self._connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=CALL_SECONDS
                )
        return self._connection

    def _trust(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context()
            if self._ca_file is not None:
                context.load_verify_locations(self._ca_file)
        except OSError as error:
            text = f"{self._ca_file} holds no certificates: {type(error).__name__}"
            raise ConfigurationError(text, code="SINK_URL") from error
        return context


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:  # a proxy's page, not the engine's
        return {}
