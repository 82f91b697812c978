"""An index of a test's own on a real OpenSearch, and the server asked beside what is tested.

The login that asks here may do everything; a sink under test comes with ``feeder``, which may do
what the documentation says that a sink needs, and no more.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from base64 import b64encode
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from duly.sinks.search import STATE_INDEX

LIMIT_SECONDS = 30


class OpenSearch:
    """url: with the login that may do everything. ca_file: what to trust. feeder, reader: the URLs
    of the other logins, the same where there are none. index: of this test.
    """

    def __init__(self, url: str) -> None:
        self.url, self.ca_file = url, os.environ.get("DULY_TEST_SEARCH_CA")
        self.feeder = os.environ.get("DULY_TEST_SEARCH_FEEDER", url)
        self.reader = os.environ.get("DULY_TEST_SEARCH_READER", url)
        self.index = f"t{uuid4().hex}"
        at = urlsplit(url)
        host, port = at.hostname or "", at.port
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(
                host,
                port,
                timeout=LIMIT_SECONDS,
                context=ssl.create_default_context(cafile=self.ca_file),
            )
            if at.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=LIMIT_SECONDS)
        )
        login = f"{unquote(at.username or '')}:{unquote(at.password or '')}"
        self._login = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}

    def ask(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer. body: text as it is, anything else as JSON."""
        text = body if isinstance(body, str | None) else json.dumps(body)
        kind = "application/x-ndjson" if isinstance(body, str) else "application/json"
        headers = {**self._login, **({"Content-Type": kind} if text else {})}
        self._connection.request(verb, path, text and text.encode(), headers)
        answer = self._connection.getresponse()
        told = answer.read()
        return answer.status, json.loads(told) if told else None

    def told(self, verb: str, path: str, body: Any = None) -> Any:
        """The answer of what has to succeed."""
        status, answer = self.ask(verb, path, body)
        assert status in (200, 201), answer
        return answer

    def documents(self) -> dict[str, dict[str, Any]]:
        """What the index holds, by id."""
        status, _ = self.ask("POST", f"/{self.index}/_refresh")
        if status == 404:
            return {}
        found = self.told("POST", f"/{self.index}/_search", {"size": 10_000})
        return {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}

    def clear(self, *streams: str) -> None:
        """Drop the index, and what is known of these streams."""
        self.ask("DELETE", f"/{self.index}")
        for stream in streams:
            self.ask("DELETE", f"/{STATE_INDEX}/_doc/{quote(f'{self.index}:{stream}')}")

    def close(self) -> None:
        """Let go of the server."""
        self._connection.close()
