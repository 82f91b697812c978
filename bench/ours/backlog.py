"""duly's relay to a broker that confirms at once: what reading and settling alone can do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bench.ours.relay import drain, left
from bench.ours.shop import Placed, arguments, durability, tell
from duly import App, Message
from duly.ports import CONFIRMED, BrokerFeatures, Finding, Outcome, SubscriptionSpec, TopicSpec


class Sink:
    """A broker that takes everything and keeps nothing."""

    features = BrokerFeatures(durable=True)

    async def start(self) -> None:
        """Nothing to connect."""

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Nothing to declare."""

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Confirm all."""
        return [CONFIRMED] * len(messages)

    async def inspect(self) -> Sequence[Finding]:
        """Nothing to find."""
        return []

    async def close(self) -> None:
        """Nothing to close."""


def main(given: dict[str, Any]) -> None:
    """Measure once."""
    app = App("bench", database=given["database"], broker=Sink())
    assert Placed.__name__  # the message type of the load is known here
    figure = asyncio.run(drain(app, given["count"]))
    if left(app):
        raise RuntimeError(f"{left(app)} messages are still in the outbox")
    tell(figure, **durability(app), messages=given["count"])


if __name__ == "__main__":
    main(arguments())
