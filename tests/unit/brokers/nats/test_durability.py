from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from duly.brokers.nats.durability import judge, read_illness, read_monitor
from duly.brokers.nats.settings import parse
from duly.ports import Finding, Severity

GREEN, WEAK, RED = Severity.GREEN, Severity.WEAK, Severity.RED
FINE = {"name": "s", "storage": "file", "discard": "new", "num_replicas": 1}


def verdict(
    url: str = "nats://localhost",
    version: str = "2.15.1",
    *,
    streams: Any = (),
    monitor: Any = None,
) -> dict[str, Finding]:
    found = judge(parse(url), {"version": version}, streams=streams, monitor=monitor)
    assert all(f.fix for f in found if f.severity is not GREEN)
    return {f.code: f for f in found}


@pytest.mark.parametrize(
    ("url", "severity"),
    [
        ("nats://localhost", GREEN),
        ("nats://far.example", WEAK),
        ("nats+tls://far.example", GREEN),
        ("nats+tls://far.example?verify=verify_none", RED),
    ],
)
def test_tls(url: str, severity: Severity) -> None:
    assert verdict(url)["NATS_TLS"].severity is severity


@pytest.mark.parametrize(
    ("version", "severity"),
    [("2.15.1", GREEN), ("2.12.7", GREEN), ("2.12.6", WEAK), ("2.9.10-beta", WEAK), ("?", WEAK)],
)
def test_version(version: str, severity: Severity) -> None:
    assert verdict(version=version)["NATS_SERVER"].severity is severity


@pytest.mark.parametrize(
    ("monitor", "replicas", "severity", "word"),
    [
        (None, 1, WEAK, "not read"),
        ("port 1 did not answer", 1, WEAK, "could not be read"),
        ({"config": {"sync_interval": 120_000_000_000}}, 1, WEAK, "every 120 s"),
        ({"config": {"sync_always": True}}, 1, GREEN, "synced before the confirm"),
        (None, 3, GREEN, "majority"),
        ({"config": {"sync_interval": 120_000_000_000}}, 3, GREEN, "majority"),
        ({}, 2, WEAK, "power"),
    ],
)
def test_what_survives_a_loss_of_power(
    monitor: Any, replicas: int, severity: Severity, word: str
) -> None:
    found = verdict(streams=[{**FINE, "num_replicas": replicas}], monitor=monitor)
    assert found["NATS_DURABILITY"].severity is severity
    assert word in found["NATS_DURABILITY"].message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"storage": "memory"}, "NATS_STREAM_MEMORY"),
        ({"persist_mode": "async"}, "NATS_STREAM_ASYNC"),
        ({"max_age": 1}, "NATS_STREAM_DROPS"),
        ({"max_msgs": 5}, None),
        ({"max_msgs": 5, "discard": "old"}, "NATS_STREAM_DROPS"),
        ({"max_bytes": 5, "discard": "old"}, "NATS_STREAM_DROPS"),
        ({"max_bytes": -1, "discard": "old"}, None),
    ],
)
def test_streams_that_lose_what_nobody_has_read(change: dict[str, Any], code: str | None) -> None:
    found = verdict(streams=[{**FINE, **change}])
    bad = [c for c, f in found.items() if f.severity is RED]
    assert bad == ([code] if code else [])


class _Answers(BaseHTTPRequestHandler):
    body = b""
    status = 200

    def do_GET(self) -> None:
        assert self.path in ("/jsz?config=true", "/healthz")
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def monitor() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(5.0)
    server.server_close()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"config":{"sync_always":true}}', {"config": {"sync_always": True}}),
        (b"[]", "its answer is no object"),
    ],
)
def test_the_monitor_is_read(monitor: int, body: bytes, found: Any) -> None:
    _Answers.body = body
    assert read_monitor(parse(f"nats://127.0.0.1?monitor={monitor}")) == found


def test_a_monitor_that_does_not_answer(monitor: int) -> None:
    assert read_monitor(parse("nats://127.0.0.1")) is None
    assert "did not answer" in str(read_monitor(parse("nats://127.0.0.1?monitor=1")))
    _Answers.body = b"<html>"
    assert "did not answer" in str(read_monitor(parse(f"nats://127.0.0.1?monitor={monitor}")))


def test_a_server_that_complains_of_itself_is_red(monitor: int) -> None:
    place = f"nats://127.0.0.1?monitor={monitor}"
    _Answers.body = b'{"status":"ok"}'
    assert read_illness(parse(place)) == ""
    _Answers.body, _Answers.status = b'{"error":"no space left"}', 503
    try:
        illness = read_illness(parse(place))
    finally:
        _Answers.status = 200
    assert illness == '{"error":"no space left"}'
    for unread in ("nats://127.0.0.1", "nats://127.0.0.1?monitor=1"):
        assert read_illness(parse(unread)) == ""
    info = {"version": "2.12.8"}
    found = {f.code: f for f in judge(parse(place), info, streams=[], monitor={}, illness=illness)}
    assert found["NATS_HEALTH"].severity is Severity.RED
    assert "no space left" in found["NATS_HEALTH"].message
    assert "restart" in found["NATS_HEALTH"].fix
    assert "NATS_HEALTH" not in [f.code for f in judge(parse(place), info, streams=[], monitor={})]
