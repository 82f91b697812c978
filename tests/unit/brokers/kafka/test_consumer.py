"""How a receiver leaves its group."""

from __future__ import annotations

from typing import Any

import pytest

from duly.brokers.kafka import consumer as module


class Client:
    """A client that gives its partitions up when it is polled."""

    def __init__(self, polls: int) -> None:
        self.left = polls
        self.subscribed = True
        self.had_when_closed: list[int] | None = None

    def unsubscribe(self) -> None:
        self.subscribed = False

    def consume(self, _count: int, _seconds: float) -> list[Any]:
        if not self.subscribed:
            self.left = max(0, self.left - 1)
        return []

    def assignment(self) -> list[int]:
        return [1] if self.left else []

    def close(self) -> None:
        self.had_when_closed = self.assignment()


def test_a_client_has_no_partition_when_it_is_closed() -> None:
    client = Client(polls=3)
    module._leave(client)  # type: ignore[arg-type]
    assert client.had_when_closed == []


def test_a_client_that_gives_nothing_up_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.05)
    client = Client(polls=10**9)
    module._leave(client)  # type: ignore[arg-type]
    assert client.had_when_closed
