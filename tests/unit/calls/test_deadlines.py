"""Deadlines against real servers that misbehave: kept to a tenth in 999 of 1,000 calls.

The machine's own lag is taken off: plain timers of the same length run beside the calls, and what
they are late by is not the calls' doing.  The best of some rounds counts: a machine that stops for
a moment makes everybody late once, a call that is not cut off is late every time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from duly import App
from duly.calls import Bulkhead, Http
from duly.errors import CallDeadlineError, OutcomeUnknownError, PeerUnavailableError
from tests.unit.calls import peers

SECONDS = 0.6
ROUNDS = 4
CUT = (CallDeadlineError, OutcomeUnknownError, PeerUnavailableError)


def late(took: list[float], timers: list[float]) -> float:
    """The worst of 999 in 1,000 calls in deadlines, without what plain timers were late by."""
    worst = sorted(took)[: max(1, round(len(took) * 0.999))][-1]
    return (worst - max(0.0, max(timers) - SECONDS)) / SECONDS


@pytest.mark.parametrize(
    ("talk", "calls"),
    [(peers.hang, 150), (peers.drip, 50), (peers.drip_headers, 50), (peers.flood, 4),
     (peers.reset, 50)],
    ids=lambda one: getattr(one, "__name__", None),
)  # fmt: skip
async def test_async_functions_are_cut_in_place(talk, calls):
    app = App("deadlines")
    with peers.serving(talk) as url:
        http = Http(url, bytes_max=10**12)

        @app.call(deadline=SECONDS, repeatable=True, bulkhead=Bulkhead(1000))
        async def ask():
            await http.request("GET", "/")

        async def caller(number, took, _):
            await asyncio.sleep(number / calls)  # one after the other, as callers come
            began = time.monotonic()
            with pytest.raises(CUT):
                await ask()
            took.append(time.monotonic() - began)

        async def timer(number, _, timers):
            await asyncio.sleep(number / calls)  # as they
            began = time.monotonic()
            await asyncio.sleep(SECONDS)
            timers.append(time.monotonic() - began)

        for left in reversed(range(ROUNDS)):
            both: tuple[list[float], list[float]] = ([], [])
            await asyncio.gather(*(one(n, *both) for n in range(calls) for one in (caller, timer)))
            if late(*both) <= 1.1 or not left:
                break
        await http.aclose()
    assert len(both[0]) == calls
    assert late(*both) <= 1.1
    assert ask.core.guard.in_use == 0  # the work has really ended, too


@pytest.mark.parametrize(
    ("talk", "way"),
    [(peers.hang, "http"), (peers.drip, "http"), (peers.hang, "socket"),
     (peers.drip_headers, "socket"), (peers.reset, "socket")],
    ids=lambda one: getattr(one, "__name__", one),
)  # fmt: skip
def test_callers_of_plain_functions_go_on(talk, way):
    app = App("deadlines")
    with peers.serving(talk) as url:
        http, place = Http(url), urlsplit(url)

        @app.call(deadline=SECONDS, bulkhead=Bulkhead(200))
        def ask():
            if way == "http":
                http.request_sync("POST", "/")
            else:
                with socket.create_connection((place.hostname, place.port), timeout=5) as peer:
                    peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    while peer.recv(100):
                        pass
                raise OutcomeUnknownError

        def caller(took, _):
            began = time.monotonic()
            with pytest.raises((*CUT, ConnectionError)):
                ask()
            took.append(time.monotonic() - began)

        def timer(_, timers):
            began = time.monotonic()
            threading.Event().wait(SECONDS)
            timers.append(time.monotonic() - began)

        for left in reversed(range(ROUNDS)):
            both: tuple[list[float], list[float]] = ([], [])
            work = [
                threading.Thread(target=o, args=both) for _ in range(30) for o in (caller, timer)
            ]
            for thread in work:
                time.sleep(0.01)  # one after the other, as callers come
                thread.start()
            for thread in work:
                thread.join(30)
            if late(*both) <= 1.1 or not left:
                break
        http.close()
    assert len(both[0]) == 30
    assert late(*both) <= 1.1
