from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from duly.brokers.activemq.settings import parse
from duly.errors import ConfigurationError


def test_a_full_url() -> None:
    s = parse(
        "stomp+tls://us%40er:p%40ss%3A%2F%3F%23@[::1]:5999,localhost/shop_1"
        "?heartbeat=3&connection_timeout=7&verify=verify_none"
    )
    assert (s.user, s.password) == ("us@er", "p@ss:/?#")
    assert s.hosts == (("::1", 5999), ("localhost", 61613))
    assert (s.prefix, s.tls, s.verified, s.local) == ("shop_1", True, False, True)
    assert (s.heartbeat_seconds, s.connection_timeout_seconds) == (3, 7)


@pytest.mark.parametrize("path", ["", "/"])
def test_the_least_url(path: str) -> None:
    s = parse(f"stomp://broker.example{path}")
    assert (s.hosts, s.prefix) == ((("broker.example", 61613),), "duly")
    assert (s.user, s.password, s.tls, s.verified, s.local) == ("", "", False, True, False)
    assert s.heartbeat_seconds == 10


@pytest.mark.parametrize(
    "url",
    [
        "",
        "stomp://",
        "stomp:///shop",
        "tls://host",
        "stomp://host:port/",
        "stomp://host:99999/",
        "stomp://host,/",
        "stomp://host/#x",
        "stomp://host/a/b",
        "stomp://host/a.b",
        "stomp://host/a~b",
        "stomp://host/?heartbeats=3",
        "stomp://host/?heartbeat=0",
        "stomp://host/?heartbeat=1e9",
        "stomp://host/?verify=no",
        "stomp://host/?verify",
        "stomp://[::1/",
    ],
)
def test_what_is_wrong_is_refused_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url.replace("//host", "//guest:hunter2@host"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "its text may quote the password"


def test_nothing_shows_the_secret() -> None:
    s = parse("stomp://guest:hunter2@host/")
    assert "hunter2" not in repr(s) + s.shown
    assert s.censor("login guest:hunter2 refused") == "login guest:*** refused"


def test_tls_verifies_unless_told_otherwise(tmp_path: Path) -> None:
    assert parse("stomp+tls://host").tls_context().verify_mode is ssl.CERT_REQUIRED
    assert parse("stomp+tls://host?verify=verify_none").tls_context().verify_mode is ssl.CERT_NONE
    for option in ("cacertfile", "certfile"):
        with pytest.raises(ConfigurationError, match="TLS files"):
            parse(f"stomp+tls://host?{option}={tmp_path}/none.pem").tls_context()
