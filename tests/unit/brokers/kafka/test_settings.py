from __future__ import annotations

from pathlib import Path

import pytest

from duly.brokers.kafka.settings import parse
from duly.errors import ConfigurationError


def test_a_full_url() -> None:
    s = parse(
        "kafkas://us%40er:p%40ss%3A%2F%3F%23@one.example:1,[::1]:2,three.example/shop"
        "?mechanism=SCRAM-SHA-512&partitions=3&replication=2&verify=verify_none"
    )
    assert (s.user, s.password) == ("us@er", "p@ss:/?#")
    assert s.servers == (("one.example", 1), ("::1", 2), ("three.example", 9092))
    assert (s.prefix, s.partitions, s.replication) == ("shop.", 3, 2)
    client = s.client()
    assert client["bootstrap.servers"] == "one.example:1,[::1]:2,three.example:9092"
    assert client["security.protocol"] == "SASL_SSL"
    assert client["sasl.mechanism"] == "SCRAM-SHA-512"
    assert client["enable.ssl.certificate.verification"] is False
    assert not s.local


def test_the_shortest_url() -> None:
    s = parse("kafka://localhost")
    assert (s.prefix, s.partitions, s.replication, s.user) == ("", 8, 0, "")
    client = s.client()
    assert client["security.protocol"] == "PLAINTEXT"
    assert not [name for name in client if name.startswith(("sasl", "ssl"))]
    assert s.local


def test_tls_verifies_the_server_and_its_name() -> None:
    client = parse("kafkas://broker.example").client()
    assert client["security.protocol"] == "SSL"
    assert client["enable.ssl.certificate.verification"] is True
    assert client["ssl.endpoint.identification.algorithm"] == "https"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kafka://",
        "kafka:///shop",
        "http://host",
        "kafka://host:port",
        "kafka://host:99999",
        "kafka://host,,other",
        "kafka://host/#x",
        "kafka://host/a.b",
        "kafka://host/a/b",
        f"kafka://host/{'x' * 41}",
        "kafka://host?partition=3",
        "kafka://host?partitions=0",
        "kafka://host?partitions=1001",
        "kafka://host?partitions=1e2",
        "kafka://host?replication=-1",
        "kafka://host?session_timeout=0",
        "kafka://host?mechanism=GSSAPI",
        "kafka://host?verify=no",
        "kafka://host?verify",
    ],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(url)


@pytest.mark.parametrize(
    "url",
    ["kafka://me:s3cr3t@host:port/", "kafka://me:s3cr3t@host?x=1", "kafka://me:s3cr3t@,host"],
)
def test_no_error_shows_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_nothing_shown_has_the_password() -> None:
    s = parse("kafka://me:s3cr3t@host")
    assert "s3cr3t" not in repr(s) + s.shown
    assert s.censor("refused: me/s3cr3t") == "refused: me/***"


def test_tls_files_that_cannot_be_read_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="TLS files"):
        parse(f"kafkas://host?cacertfile={tmp_path / 'none.pem'}").check_files()
