"""Calls by HTTP: one small client that keeps its deadline, also against a peer that drips bytes.

Owns what an answer means, and cutting off.  The client behind it is httpx2 or httpx, whichever is
installed (extra ``http``); neither has a limit for a whole exchange, so every request is cancelled
at the deadline of the call it runs in, which closes its connection in place - for plain functions
too, whose requests run on an event loop of ours.

    what came                                     | raised
    ----------------------------------------------+---------------------------------------------
    no connection; 429, 503                       | PeerUnavailableError (with ``Retry-After``)
    cut short, 5xx, to GET, HEAD, OPTIONS, TRACE  | PeerUnavailableError
    cut short, 5xx, to any other method           | OutcomeUnknownError
    another 4xx, 3xx                              | PermanentError, code HTTP_<status>
    more than ``bytes_max``                       | PermanentError, code HTTP_TOO_LARGE

The invariant: a request that may have been acted on is never reported as not done.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import threading
import time
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple

import msgspec

from duly.calls.deadline import time_left
from duly.calls.guard import at_fork
from duly.errors import (
    MissingExtraError,
    OutcomeUnknownError,
    PeerUnavailableError,
    PermanentError,
    UndecodableError,
)
from duly.kernel.retry_after import retry_after
from duly.runtime.portal import Portal
from duly.wire.urls import redact

__all__ = ["Http", "Reply"]

SECONDS_MAX = 60.0  # of one exchange outside of any call
CLOSE_SECONDS = 5.0
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_BUSY = frozenset({429, 503})


class Reply(NamedTuple):
    """A good answer (2xx). headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, type: Any = Any) -> Any:
        """The body, decoded from JSON to ``type``. Raises UndecodableError."""
        try:
            return msgspec.json.decode(self.body, type=type)
        except msgspec.MsgspecError:  # not `from` it: its text may quote the body
            raise UndecodableError(f"an answer of {len(self.body)} bytes") from None


class Http:
    """A client of one peer. Safe to use from any thread and event loop.

    url: what the paths of requests are put behind. headers: of every request. bytes_max: of an
    answer. client: makes the AsyncClient of httpx or httpx2, for settings of your own (TLS, proxy,
    limits). Raises MissingExtraError at the first request.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        bytes_max: int = 10_000_000,
        client: Any = None,
    ) -> None:
        self._url, self._headers, self._bytes_max = url.rstrip("/"), dict(headers or {}), bytes_max
        self._make = client or _default_client
        self.begin()
        at_fork(self)

    def begin(self) -> None:
        """Forget all connections and the thread: a forked child has none."""
        self._lock = threading.Lock()
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}  # connections belong to a loop
        self._portal: Portal | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One exchange, within what is left of the deadline of the running call; a minute where
        there is none.

        json: a body that msgspec can encode. Guarantee: over by the deadline, its connection
        closed. On failure: PeerUnavailableError where nothing was done, OutcomeUnknownError where
        nobody knows, PermanentError (HTTP_404 and the like) where the peer refuses. Idempotence:
        the method's own, or a key among the headers.
        """
        sent = {**self._headers, **(headers or {})}
        if json is not None:
            content = msgspec.json.encode(json)
            sent.setdefault("content-type", "application/json")
        client = self._client()
        request = client.build_request(
            method, f"{self._url}{path}", content=content, params=params, headers=sent
        )
        if time_left() < math.inf:
            return await self._exchange(client, request)  # whoever set the deadline cuts it off
        return await self._limited(SECONDS_MAX, method, self._exchange(client, request))

    def request_sync(self, method: str, path: str, **more: Any) -> Reply:
        """As ``request``, for plain functions; not inside an event loop."""
        with self._lock:
            if self._portal is None:
                self._portal = Portal("http")
            portal = self._portal
        left = min(time_left(), SECONDS_MAX)  # goes along by its value: the loop has a context
        exchange = self._limited(left, method, self.request(method, path, **more))
        return portal.call(exchange, timeout_seconds=left + CLOSE_SECONDS)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the connections of ``request_sync``."""
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is not None:
            portal.call(self.aclose(), timeout_seconds=CLOSE_SECONDS)
            portal.close()

    async def _limited(
        self, seconds: float, method: str, exchange: Coroutine[Any, Any, Reply]
    ) -> Reply:
        try:
            async with asyncio.timeout(seconds):
                return await exchange
        except TimeoutError:
            raise self._broken(method, "no whole answer in time") from None

    async def _exchange(self, client: Any, request: Any) -> Reply:
        library, method = _library(client), request.method
        try:
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                body = await self._body(response)
            finally:
                await response.aclose()
        except (library.ConnectError, library.ConnectTimeout, library.PoolTimeout) as error:
            text = f"{redact(self._url)}: {type(error).__name__}"
            raise PeerUnavailableError(text) from None
        except library.TransportError as error:
            raise self._broken(method, type(error).__name__) from None
        self._judge(method, response)
        return Reply(
            response.status_code, {k.lower(): v for k, v in response.headers.items()}, body
        )

    async def _body(self, response: Any) -> bytes:
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > self._bytes_max:
                text = f"{redact(self._url)}: more than {self._bytes_max} bytes"
                raise PermanentError(text, code="HTTP_TOO_LARGE")
            parts.append(part)
        return b"".join(parts)

    def _judge(self, method: str, response: Any) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        text = f"{redact(self._url)} answered {status}"
        if status in _BUSY:
            error = PeerUnavailableError(text)
            error.retry_after_seconds = retry_after(
                response.headers.get("retry-after", ""), time.time()
            )
            raise error
        if status >= 500:
            raise self._broken(method, f"status {status}")
        raise PermanentError(text, code=f"HTTP_{status}")

    def _broken(self, method: str, what: str) -> Exception:
        text = f"{method} {redact(self._url)}: {what}"
        return PeerUnavailableError(text) if method in _SAFE else OutcomeUnknownError(text)

    def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            self._clients = {at: one for at, one in self._clients.items() if not at.is_closed()}
            client = self._clients[loop] = self._make()
        return client


def _default_client() -> Any:
    """Its own limits are for single steps, as a net under the deadline."""
    for name in ("httpx2", "httpx"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        return library.AsyncClient(timeout=SECONDS_MAX)
    raise MissingExtraError("httpx2", "http")


def _library(client: Any) -> Any:
    """The module that a client's exceptions are in."""
    return importlib.import_module(type(client).__module__.partition(".")[0])
