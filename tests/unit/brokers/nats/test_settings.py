from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from duly.brokers.nats.settings import parse
from duly.errors import ConfigurationError


def test_a_full_url() -> None:
    s = parse(
        "nats+tls://us%40er:p%40ss%3A%2F%3F%23@[::1]:5999,localhost/shop_1"
        "?heartbeat=3&connection_timeout=7&replicas=3&monitor=8222&verify=verify_none"
    )
    assert (s.user, s.password) == ("us@er", "p@ss:/?#")
    assert s.hosts == (("::1", 5999), ("localhost", 4222))
    assert (s.prefix, s.replicas, s.monitor) == ("shop_1", 3, 8222)
    assert (s.tls, s.verified, s.local) == (True, False, True)
    assert (s.heartbeat_seconds, s.connection_timeout_seconds) == (3, 7)


@pytest.mark.parametrize("path", ["", "/"])
def test_the_least_url(path: str) -> None:
    s = parse(f"nats://broker.example{path}")
    assert (s.hosts, s.prefix) == ((("broker.example", 4222),), "duly")
    assert (s.user, s.password, s.tls, s.verified, s.local) == ("", "", False, True, False)
    assert (s.replicas, s.monitor, s.heartbeat_seconds) == (1, 0, 10)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nats://",
        "nats:///shop",
        "tls://host",
        "http://host",
        "nats://host:port/",
        "nats://host:99999/",
        "nats://host,/",
        "nats://host/#x",
        "nats://host/a/b",
        "nats://host/a.b",
        "nats://host/a-b",
        "nats://host/%2A",
        "nats://host/?heartbeats=3",
        "nats://host/?heartbeat=0",
        "nats://host/?heartbeat=601",
        "nats://host/?heartbeat=1e9",
        "nats://host/?replicas=6",
        "nats://host/?monitor=x",
        "nats://host/?monitor",
        "nats://host/?verify=no",
        "nats://[::1/",
    ],
)
def test_what_is_wrong_is_refused_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url.replace("//host", "//guest:hunter2@host"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "its text may quote the password"


def test_nothing_shows_the_secret() -> None:
    s = parse("nats://guest:hunter2@host/")
    assert "hunter2" not in repr(s) + s.shown
    assert s.censor("login guest:hunter2 refused") == "login guest:*** refused"
    token = parse("nats://hunter2@host/")
    assert token.censor("token hunter2 refused") == "token *** refused"
    assert "hunter2" not in token.shown


def test_tls_verifies_unless_told_otherwise(tmp_path: Path) -> None:
    assert parse("nats+tls://host").tls_context().verify_mode is ssl.CERT_REQUIRED
    assert parse("nats+tls://host?verify=verify_none").tls_context().verify_mode is ssl.CERT_NONE
    for option in ("cacertfile", "certfile"):
        with pytest.raises(ConfigurationError, match="TLS files"):
            parse(f"nats+tls://host?{option}={tmp_path}/none.pem").tls_context()
