"""How a reader of the log makes itself known, and which others it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from duly.databases.mysql import changes_readers
from duly.databases.mysql.changes_catalog import Server
from duly.databases.mysql.changes_readers import Readers
from duly.errors import ConfigurationError, DatabaseUnavailableError, StaleLeaseError

MARIADB = Server(True, (10, 11), {})
MYSQL = Server(False, (8, 4), {})
READERS = Readers("shop", "prices of all")


class Hosts:
    """The server's list of readers; a connection that is killed is gone from it.

    refuses: with which error it answers to KILL.
    """

    def __init__(self, *hosts: str, number: int = READERS.number, refuses: int = 0) -> None:
        self.rows = [(number, host, 0, 1) for host in hosts]
        self.refuses = refuses
        self.asked: list[str] = []

    def __call__(self, sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        self.asked.append(sql)
        if sql.startswith("KILL"):
            if self.refuses:
                raise RuntimeError(self.refuses, "no")
            number = sql.partition(" ")[2]
            self.rows = [row for row in self.rows if not row[1].endswith(f":{number}")]
        return self.rows


def test_names_have_numbers_of_their_own_that_no_person_chooses() -> None:
    others = [Readers("shop", "a"), Readers("shop", "b"), Readers("store", "a"), READERS]
    assert len({one.number for one in others}) == 4
    assert all(2**31 <= one.number < 2**32 for one in others)
    label = READERS.label(7, 123)
    assert label.startswith("duly:prices_of_all:")
    assert label.endswith(":7:123")
    assert len(Readers("s", "x" * 64).label(2**40, 2**40)) <= 60


def test_older_readers_are_ended_and_nobody_else() -> None:
    hosts = Hosts(READERS.label(5, 50), READERS.label(6, 60), READERS.label(6, 61))
    hosts.rows.append((1, "replica", 3306, 1))
    READERS.put_out(hosts, MARIADB, token=6, connection=61)
    assert [sql for sql in hosts.asked if sql.startswith("KILL")] == ["KILL 50", "KILL 60"]
    assert [row[1] for row in hosts.rows] == [READERS.label(6, 61), "replica"]


def test_a_later_reader_stays() -> None:
    hosts = Hosts(READERS.label(7, 70), READERS.label(6, 60))
    assert READERS.taken_over(hosts, MARIADB, 6)
    assert not READERS.taken_over(hosts, MARIADB, 7)
    with pytest.raises(StaleLeaseError):
        READERS.put_out(hosts, MARIADB, token=6, connection=60)
    assert len(hosts.rows) == 2


@pytest.mark.parametrize("host", ["", "replica7", "duly:other:00000000:1:2"])
def test_a_number_that_is_somebody_elses_is_said(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        READERS.known(Hosts(host), MARIADB)
    assert caught.value.code == "CDC_SERVER_ID_IN_USE"


def test_what_may_not_be_seen_or_ended_names_what_helps() -> None:
    def denied(sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        raise RuntimeError(1227, "Access denied")

    for server, right in ((MARIADB, "REPLICATION MASTER ADMIN"), (MYSQL, "REPLICATION CLIENT")):
        with pytest.raises(ConfigurationError, match=right):
            READERS.known(denied, server)
    with pytest.raises(ConfigurationError, match="KILL 50"):
        READERS.put_out(Hosts(READERS.label(5, 50), refuses=1095), MARIADB, token=6, connection=60)
    with pytest.raises(RuntimeError):
        READERS.put_out(Hosts(READERS.label(5, 50), refuses=3), MARIADB, token=6, connection=60)


def test_one_that_does_not_let_go_is_waited_for_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changes_readers, "_TAKE_OVER_SECONDS", 0.05)
    hosts = Hosts(READERS.label(5, 50), refuses=1094)
    with pytest.raises(DatabaseUnavailableError):
        READERS.put_out(hosts, MARIADB, token=6, connection=60)


def test_each_server_is_asked_in_its_words() -> None:
    for server, sql in ((MARIADB, "SHOW SLAVE HOSTS"), (MYSQL, "SHOW REPLICAS")):
        hosts = Hosts()
        assert READERS.known(hosts, server) == []
        assert hosts.asked == [sql]
