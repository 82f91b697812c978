"""Whether the servers that an App stands on are there, as this process sees it.

Owns one question per server, asked every few seconds, and the facts ``Connected`` and
``Disconnected``: one at each change, so that a server that is away for an hour is two lines and
not a thousand.  Decides nothing: every part waits and tries again by itself.  The invariant: a
question that fails in a way we know, or has no answer in time, never ends the role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, NoReturn

from duly.errors import DulyError, error_code
from duly.observe.facts import Connected, Disconnected
from duly.observe.hooks import Hooks

__all__ = ["EVERY_SECONDS", "Peer", "PeerWatch"]

EVERY_SECONDS = 5.0
ANSWER_SECONDS = 15.0


class Peer(NamedTuple):
    """A server. name: ``database`` or ``broker``; url: redacted; ask: raises a DulyError or
    TimeoutError while it is away.
    """

    name: str
    url: str
    ask: Callable[[], Awaitable[object]]


class PeerWatch:
    """A role that tells when servers come and go."""

    def __init__(
        self, peers: Sequence[Peer], *, hooks: Hooks, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._peers, self._hooks, self._every_seconds = list(peers), hooks, every_seconds
        self._there: dict[str, bool] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask no more. Idempotent."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask until stopped."""
        asking = asyncio.create_task(self._ask_on())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (asking, stopping):
            task.cancel()
        ended, _ = await asyncio.gather(asking, stopping, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended

    async def _ask_on(self) -> NoReturn:
        while True:
            await asyncio.gather(*(self._look(peer) for peer in self._peers))
            await asyncio.sleep(self._every_seconds)

    async def _look(self, peer: Peer) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await peer.ask()
        except (DulyError, TimeoutError) as error:
            if self._there.get(peer.name) is not False:
                self._there[peer.name] = False
                fact = Disconnected(
                    peer=peer.name,
                    url=peer.url,
                    code=error_code(error),
                    retry_in_seconds=self._every_seconds,
                )
                self._hooks.emit(fact)
        else:
            if not self._there.get(peer.name):
                self._there[peer.name] = True
                self._hooks.emit(Connected(peer=peer.name, url=peer.url))
