from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import httpx
import pytest

from duly import App
from duly.calls import Http, Retry
from duly.calls import http as room
from duly.errors import (
    MissingExtraError,
    OutcomeUnknownError,
    PeerUnavailableError,
    PermanentError,
    UndecodableError,
)
from tests.unit.calls import peers


@pytest.fixture(params=["httpx2", "httpx"])
def make(request):
    """Clients of both libraries."""
    library = pytest.importorskip(request.param)
    return lambda url, **more: Http(url, client=lambda: library.AsyncClient(timeout=5), **more)


async def ask(http, method="GET", **more):
    try:
        return await http.request(method, "/rate", **more)
    finally:
        await http.aclose()


async def test_a_good_answer(make):
    with peers.serving(peers.answering(peers.ok(b'{"rate": 1.5}', "X-Id: 7"))) as url:
        reply = await ask(make(url), params={"to": "EUR"}, json={"a": 1})
        assert (reply.status, reply.headers["x-id"], reply.json()) == (200, "7", {"rate": 1.5})
        with pytest.raises(UndecodableError) as undecodable:
            reply.json(list[int])
        assert "rate" not in str(undecodable.value)


@pytest.mark.parametrize(
    ("status", "method", "error", "code"),
    [
        ("404 Not Found", "POST", PermanentError, "HTTP_404"),
        ("301 Moved", "GET", PermanentError, "HTTP_301"),
        ("429 Slow Down", "POST", PeerUnavailableError, "PEER_UNAVAILABLE"),
        ("503 Busy", "POST", PeerUnavailableError, "PEER_UNAVAILABLE"),
        ("500 Oops", "GET", PeerUnavailableError, "PEER_UNAVAILABLE"),
        ("502 Bad Gateway", "POST", OutcomeUnknownError, "OUTCOME_UNKNOWN"),
    ],
)
async def test_what_an_answer_means(make, status, method, error, code):
    answer = peers.ok(b"secret", "Retry-After: 17", status=status)
    with peers.serving(peers.answering(answer)) as url, pytest.raises(error) as raised:
        await ask(make(url.replace("http://", "http://user:hunter2@")), method)
    assert raised.value.code == code
    assert "hunter2" not in str(raised.value)
    assert "secret" not in str(raised.value)
    if status[:3] in ("429", "503"):
        assert raised.value.retry_after_seconds == 17


async def test_a_connection_that_breaks_is_unknown_unless_nothing_can_have_been_done(make):
    with peers.serving(peers.reset) as url:
        with pytest.raises(OutcomeUnknownError):
            await ask(make(url), "POST")
        with pytest.raises(PeerUnavailableError):
            await ask(make(url), "GET")


async def test_where_nobody_listens_nothing_was_done(make):
    with peers.serving(peers.hang) as url:
        port = urlsplit(url).port
    with pytest.raises(PeerUnavailableError):
        await ask(make(f"http://127.0.0.1:{port}"), "POST")


async def test_a_flood_is_cut_at_the_limit(make):
    with peers.serving(peers.flood) as url, pytest.raises(PermanentError) as raised:
        await ask(make(url, bytes_max=100_000))
    assert raised.value.code == "HTTP_TOO_LARGE"


def test_plain_functions_use_it_too(make):
    app, answers = App("http"), (peers.ok(b"", status="503 Busy"), peers.ok(b"7"))
    with peers.serving(peers.answering(*answers)) as url:
        http = make(url)

        @app.call(deadline="10s", retry=Retry(attempts=2, base="1ms", on=(PeerUnavailableError,)))
        def rate():
            return http.request_sync("GET", "/rate").json(int)

        assert rate() == 7
        http.close()
        http.close()


def test_connections_belong_to_their_event_loop():
    import asyncio

    with peers.serving(peers.answering(peers.ok(b"1"))) as url:
        http = Http(url)

        async def once():
            reply = await http.request("GET", "/")
            await http.aclose()
            return reply.status

        assert [asyncio.run(once()) for _ in range(3)] == [200] * 3


async def test_outside_of_a_call_it_ends_by_itself(monkeypatch):
    monkeypatch.setattr(room, "SECONDS_MAX", 0.1)
    with peers.serving(peers.drip) as url, pytest.raises(OutcomeUnknownError):
        await ask(Http(url), "POST")


def test_a_forked_child_makes_connections_of_its_own():
    with peers.serving(peers.answering(peers.ok(b"1"))) as url:
        http = Http(url)
        assert http.request_sync("GET", "/").status == 200
        child = os.fork()
        if child == 0:
            os._exit(0 if http.request_sync("GET", "/").status == 200 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        http.close()


def test_what_to_install_is_said(monkeypatch):
    for name in ("httpx2", "httpx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"duly\[http\]"):
        Http("http://127.0.0.1:1").request_sync("GET", "/")


def test_a_client_may_be_the_users_own():
    def answer(request):
        assert request.headers["x-all"] == "1"
        return httpx.Response(201, text="mine")

    def client():
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    http = Http("http://peer.example", headers={"x-all": "1"}, client=client)
    assert http.request_sync("PUT", "/", content=b"x").body == b"mine"
    http.close()
