from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from duly.brokers.rabbitmq.settings import parse
from duly.errors import ConfigurationError


def test_a_full_url() -> None:
    s = parse(
        "amqps://us%40er:p%40ss%3A%2F%3F%23@[::1]:5999/my%2Fhost?heartbeat=3&connection_timeout=7"
    )
    assert (s.user, s.password) == ("us@er", "p@ss:/?#")
    assert (s.host, s.port, s.vhost) == ("::1", 5999, "my/host")
    assert (s.tls, s.verified, s.heartbeat_seconds, s.connection_timeout_seconds) == (
        True,
        True,
        3,
        7,
    )
    assert s.local


@pytest.mark.parametrize("path", ["", "/", "/%2F"])
def test_the_default_virtual_host(path: str) -> None:
    s = parse(f"amqp://broker.example{path}")
    assert (s.vhost, s.port, s.user, s.password, s.tls) == ("/", 5672, "guest", "guest", False)
    assert not s.local


@pytest.mark.parametrize(
    "url",
    [
        "",
        "amqp://",
        "amqp:///vhost",
        "http://host",
        "amqp://host:port/",
        "amqp://host:99999/",
        "amqp://host/#x",
        "amqp://host/?heartbeats=3",
        "amqp://host/?heartbeat=0",
        "amqp://host/?heartbeat=601",
        "amqp://host/?heartbeat=-1",
        "amqp://host/?heartbeat=1e9",
        "amqp://host/?heartbeat=",
        "amqp://host/?heartbeat",
        "amqp://host/?verify=no",
        "amqp://host/?queue_type=stream",
        "amqp://[::1/",
    ],
)
def test_what_is_wrong_is_refused_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url.replace("//host", "//guest:hunter2@host"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "its text may quote the password"


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'heartbeats'.*heartbeat.*verify"):
        parse("amqp://host/?heartbeats=3")


def test_the_password_is_shown_nowhere() -> None:
    s = parse("amqp://me:hunter2@host/")
    assert "hunter2" not in repr(s) + s.shown
    assert s.censor("login with hunter2 failed") == "login with *** failed"


def test_tls_verifies_unless_told_otherwise(tmp_path: Path) -> None:
    context = parse("amqps://host/").tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context = parse("amqps://host/?verify=verify_none").tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    for option in ("cacertfile", "certfile"):
        with pytest.raises(ConfigurationError, match="TLS files"):
            parse(f"amqps://host/?{option}={tmp_path}/none.pem").tls_context()
