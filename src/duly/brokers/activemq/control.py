"""Deleting what was made on a server, from a program that does nothing else with it.

Owns one short connection of its own. Leaves out everything a running App does: nothing there ever
deletes an address or a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from duly.brokers.activemq.api import Api, RefusedError
from duly.brokers.activemq.link import Link
from duly.brokers.activemq.settings import parse
from duly.brokers.activemq.topology import address_of
from duly.errors import BrokerUnavailableError, ConfigurationError
from duly.ports import TopicSpec

__all__ = ["delete_topics"]

SECONDS = 30.0
AGAIN_SECONDS = 0.5


def delete_topics(url: str, topics: Sequence[TopicSpec] | None = None) -> None:
    """Delete the addresses of topics with all their queues and messages. Blocks.

    topics: None for everything below the prefix of the URL. Raises BrokerUnavailableError,
    ConfigurationError. Idempotent.
    """
    try:
        asyncio.run(asyncio.wait_for(_until_done(url, topics), SECONDS))
    except TimeoutError:
        raise BrokerUnavailableError(f"{parse(url).shown}: no answer") from None


async def _until_done(url: str, topics: Sequence[TopicSpec] | None) -> None:
    """An answer may be lost with the address that it was asked over, so it is asked for again."""
    while True:
        try:
            return await _delete(url, topics)
        except BrokerUnavailableError:
            await asyncio.sleep(AGAIN_SECONDS)


async def _delete(url: str, topics: Sequence[TopicSpec] | None) -> None:
    settings = parse(url)
    link = Link(settings, purpose="delete")
    api = Api(link)
    link.open()
    try:
        there = [str(name) for name in await api.call("getAddressNames")]
        starts = (f"{settings.prefix}.event.", f"{settings.prefix}.command.")
        wanted = [name for name in there if name.startswith(starts)]
        if topics is not None:
            named = {address_of(settings.prefix, topic) for topic in topics}
            wanted = [name for name in wanted if name in named]
        for address in wanted:
            await api.call("deleteAddress", address, True)
            await api.call("removeAddressSettings", address)
    except RefusedError as error:
        raise ConfigurationError(f"{settings.shown}: {error}") from error
    finally:
        await link.close()
