"""ActiveMQ as the row "crash twophase" sees it: by a STOMP client and without duly.

What is in the queue of payments is read once and kept, as reading takes it away; what is prepared
is asked of the server's management."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import stomp

__all__ = ["QUEUE", "Mailbox"]

QUEUE = "duly.command.notes"
ANSWER_SECONDS = 20.0
ENDS = ("the beginning", "the end")


class Mailbox(stomp.ConnectionListener):  # type: ignore[misc]
    """One server. url: stomp://."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._frames: queue.Queue[Any] = queue.Queue()
        self._read: list[str] = []

    def on_message(self, frame: Any) -> None:
        """Of the client."""
        self._frames.put(frame.body)

    def prepare(self) -> None:
        """Make the queue: it stays as long as there is something in it."""
        with self._connected() as client:
            client.send(QUEUE, ENDS[0], headers=_durable(), receipt="made")

    def payments(self) -> list[str]:
        """The payments that the queue had messages of, one for each message."""
        with self._connected() as client:
            client.send(QUEUE, ENDS[1], headers=_durable())
            client.subscribe(QUEUE, id="1", ack="auto", headers={"subscription-type": "ANYCAST"})
            while (body := self._frames.get(timeout=ANSWER_SECONDS)) != ENDS[1]:
                self._read += [] if body == ENDS[0] else [json.loads(body)["id"]]
        return self._read

    def prepared(self) -> list[str]:
        """The branches that are prepared, in the server's own words."""
        inbox = f"answers.{uuid4().hex}"
        with self._connected() as client:
            client.subscribe(inbox, id="1", ack="auto", headers={"subscription-type": "MULTICAST"})
            asked = {
                "reply-to": inbox,
                "_AMQ_ResourceName": "broker",
                "_AMQ_OperationName": "listPreparedTransactions",
            }
            client.send("activemq.management", "[]", headers=asked)
            (found,) = json.loads(self._frames.get(timeout=ANSWER_SECONDS))
        return [str(one) for one in found]

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        client = stomp.Connection12(
            [(self._url.hostname, self._url.port)],
            reconnect_attempts_max=1,
            auto_content_length=False,  # with a length, questions are bytes to the server
        )
        client.set_listener("", self)
        client.connect(self._url.username, self._url.password, wait=True)
        try:
            yield client
        finally:
            client.disconnect()


def _durable() -> dict[str, str]:
    return {"destination-type": "ANYCAST", "persistent": "true"}
