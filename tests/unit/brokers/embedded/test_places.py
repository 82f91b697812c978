from __future__ import annotations

from typing import Any

import pytest

from duly.brokers.embedded import EmbeddedBroker, postgres
from duly.brokers.embedded.file import FilePlace
from duly.brokers.embedded.mysql import MysqlPlace
from duly.brokers.embedded.places import place_of
from duly.brokers.embedded.postgres import PostgresPlace
from duly.errors import ConfigurationError, DulyError

LOGIN = "embedded+postgresql://shop:s3cret-w0rd@localhost"


OPTIONS = ("lease=1ms", "lease=1h", "retention=0s", "colour=red", "ssl_ca=x")


def server(url: str) -> Any:
    return place_of(url, prefix="duly_")._server  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("embedded+postgresql", PostgresPlace),
        ("embedded+postgres", PostgresPlace),
        ("embedded+mysql", MysqlPlace),
        ("embedded+mariadb", MysqlPlace),
    ],
)
def test_the_scheme_names_the_server(scheme: str, kind: type) -> None:
    place = place_of(f"{scheme}://shop@localhost/shop", prefix="duly_")
    assert isinstance(place, kind)
    assert place.own_sender
    assert not isinstance(place, FilePlace)


def test_a_url_is_taken_apart() -> None:
    text = "embedded+postgresql://sh%40p:a%2Fb@db.example:6432/s%20hop?sslmode=require&lease=2s"
    found = server(f"{text}&retention=1h")
    assert (found.host, found.port, found.database) == ("db.example", 6432, "s hop")
    assert (found.user, found.password) == ("sh@p", "a/b")
    assert found.options == {"sslmode": "require"}
    assert (found.lease_seconds, found.retention_seconds) == (2.0, 3600.0)
    assert found.prefix == "duly_broker_"


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/",
        "/a/b",
        "/s%00hop",
        "/shop#x",
        ":port/shop",
        *(f"/shop?{option}" for option in OPTIONS),
    ],
)
def test_a_bad_url_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        place_of(LOGIN + rest, prefix="duly_")
    assert "s3cret" not in str(caught.value)
    assert "broker URL embedded+postgresql://***@localhost" in caught.value.detail


@pytest.mark.parametrize("url", ["embedded+oracle://x/y", "embedded+://x/y"])
def test_another_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="embedded"):
        place_of(url, prefix="duly_")


def test_a_prefix_that_cannot_stand_in_sql_is_refused() -> None:
    with pytest.raises(DulyError, match="table prefix"):
        place_of(f"{LOGIN}/shop", prefix='x"; DROP TABLE y; --')


def test_the_broker_says_what_it_can_before_it_is_started() -> None:
    broker = EmbeddedBroker(f"{LOGIN}/shop")
    assert broker.features.durable
    assert broker.features.payload_bytes_max == postgres.PAYLOAD_BYTES_MAX
    assert "s3cret" not in repr(server(f"{LOGIN}/shop"))


def test_tls_files_that_are_not_there_are_said_at_start() -> None:
    place = place_of("embedded+mysql://shop@localhost/shop?ssl_ca=/not/there.pem", prefix="duly_")
    with pytest.raises(ConfigurationError, match="TLS files"):
        place.check()
