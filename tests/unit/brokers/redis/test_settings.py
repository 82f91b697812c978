from __future__ import annotations

from pathlib import Path

import pytest

from duly.brokers.redis.settings import parse
from duly.errors import ConfigurationError


def test_a_full_url(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    s = parse(
        "rediss://us%40er:p%40ss%3A%2F%3F%23@[::1]:5999/3?prefix=shop:&retention=5m&lease=800ms"
        f"&connection_timeout=7s&cacertfile={ca}"
    )
    assert (s.user, s.password) == ("us@er", "p@ss:/?#")
    assert (s.host, s.port, s.db) == ("::1", 5999, 3)
    assert (s.prefix, s.retention_seconds, s.lease_seconds) == ("shop:", 300.0, 0.8)
    assert (s.tls, s.verified, s.cacertfile) == (True, True, str(ca))
    assert s.connection_timeout_seconds == 7.0
    assert s.local


@pytest.mark.parametrize("path", ["", "/", "/0"])
def test_what_is_not_said(path: str) -> None:
    s = parse(f"redis://broker.example{path}")
    assert (s.db, s.port, s.user, s.password, s.tls) == (0, 6379, None, None, False)
    assert (s.prefix, s.retention_seconds, s.lease_seconds) == ("duly:", 3600.0, 4.0)
    assert not s.local


def test_nothing_need_be_kept() -> None:
    assert parse("redis://host/?retention=0s").retention_seconds == 0.0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://",
        "redis:///0",
        "http://host",
        "redis://host:port/",
        "redis://host:99999/",
        "redis://host/#x",
        "redis://host/name",
        "redis://host/-1",
        "redis://host/?prefixes=a",
        "redis://host/?prefix=",
        "redis://host/?prefix=a%20b",
        "redis://host/?prefix=*",
        "redis://host/?lease=0s",
        "redis://host/?lease=5",
        "redis://host/?lease=2h",
        "redis://host/?retention=-1s",
        "redis://host/?retention",
        "redis://host/?verify=no",
        "redis://host/?cacertfile=/etc/hostname",
        "rediss://host/?cacertfile=/no/such/file",
        "redis://[::1/",
    ],
)
def test_what_is_wrong_is_refused_without_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url.replace("//host", "//default:hunter2@host"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None, "its text may quote the password"


def test_the_password_is_masked_wherever_it_stands() -> None:
    s = parse("redis://:hunter2@host")
    assert "hunter2" not in repr(s)
    assert s.censor("no hunter2 here") == "no *** here"
