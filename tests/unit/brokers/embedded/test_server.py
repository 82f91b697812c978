from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from duly.brokers.embedded.places import Server
from duly.brokers.embedded.server import ServerStore
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError, OutcomeUnknownError
from duly.ports import Finding, Severity

SERVER = Server(
    name="embedded+postgresql://***@db/shop",
    host="db",
    port=None,
    user="shop",
    password="s3cret",
    database="shop",
    options={},
    prefix="duly_broker_",
    lease_seconds=4.0,
    retention_seconds=60.0,
)


class DriverError(Exception):
    """What a driver raises."""


class Store(ServerStore):
    """A store whose server does what a test says. broken: the statement that fails."""

    payload_bytes_max = 100
    pause_seconds = (1.0, 1.0)
    begin = "BEGIN"

    def __init__(self, *, broken: str = "", refused: bool = False, loses: bool = False) -> None:
        super().__init__(SERVER, {"lock": " FOR UPDATE"})
        self.said_to_it: list[str] = []
        self.schema: int | None = 1
        self.made = self.closed = 0
        self._broken, self._refused, self._loses = broken, refused, loses
        self._lost = False

    def run(self, text: str, values: Mapping[str, Any] | None) -> tuple[list[Any], int]:
        self.said_to_it.append(text)
        if self._broken and text.startswith(self._broken):
            self._lost = self._loses
            raise DriverError(f"failed for shop with s3cret: {text}")
        if "SELECT version" in text and self.schema is None:
            raise DriverError("no such table")
        return [(self.schema,)], 1

    def change_all(self, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run(text, None)

    def ring(self) -> None:
        raise NotImplementedError

    def map_error(self, error: Exception) -> Exception:
        if isinstance(error, DriverError):
            return BrokerUnavailableError(self.said(str(error)))
        return error

    def is_missing(self, error: Exception) -> bool:
        return "no such table" in str(error)

    def is_refusal(self, error: Exception) -> bool:
        return self._refused

    def make_tables(self) -> None:
        self.made += 1
        self.schema = 1

    def version(self) -> object:
        raise NotImplementedError

    def inspect(self) -> list[Finding]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    @property
    def lost(self) -> bool:
        return self._lost


def write(store: Store, *, alone: bool = True) -> None:
    with store.writing(alone=alone) as db:
        db.change("UPDATE {epoch} SET value = :value", {"value": 2})


def test_who_must_be_alone_locks_the_epoch_first() -> None:
    store = Store()
    write(store)
    assert store.said_to_it == [
        "BEGIN",
        "SELECT value FROM duly_broker_epoch WHERE id = 1 FOR UPDATE",
        "UPDATE duly_broker_epoch SET value = %(value)s",
        "COMMIT",
    ]
    store = Store()
    write(store, alone=False)
    assert store.said_to_it[1].startswith("UPDATE")


@pytest.mark.parametrize("broken", ["BEGIN", "UPDATE"])
def test_what_fails_before_the_commit_is_not_stored(broken: str) -> None:
    store = Store(broken=broken)
    with pytest.raises(BrokerUnavailableError):
        write(store)
    assert store.said_to_it[-1] == "ROLLBACK"
    lost = Store(broken=broken, loses=True)
    with pytest.raises(BrokerUnavailableError):
        write(lost)
    assert lost.said_to_it[-1].startswith(broken), "nobody is there to roll back"


def test_an_error_of_commit_is_unknown_unless_the_server_refused() -> None:
    with pytest.raises(OutcomeUnknownError):
        write(Store(broken="COMMIT"))
    with pytest.raises(OutcomeUnknownError):
        write(Store(broken="COMMIT", refused=True, loses=True))
    with pytest.raises(BrokerUnavailableError):
        write(Store(broken="COMMIT", refused=True))


def test_an_error_of_the_caller_rolls_back_and_is_not_changed() -> None:
    store = Store()
    with pytest.raises(KeyError), store.writing():
        raise KeyError("mine")
    assert store.said_to_it[-1] == "ROLLBACK"


def test_a_rollback_that_fails_closes_the_connection() -> None:
    store = Store(broken="ROLLBACK")
    with pytest.raises(KeyError), store.writing():
        raise KeyError("mine")
    assert store.closed == 1


@pytest.mark.parametrize("broken", ["COMMIT", "UPDATE"])
def test_no_error_shows_the_password(broken: str) -> None:
    with pytest.raises(DulyError) as caught:
        write(Store(broken=broken))
    assert "s3cret" not in caught.value.detail
    assert SERVER.name in caught.value.detail


def test_tables_are_made_where_they_are_missing_and_only_there() -> None:
    store = Store()
    store.prepare()
    assert store.made == 0
    store.schema = None
    store.prepare()
    assert store.made == 1
    store.schema = 2
    with pytest.raises(ConfigurationError, match="schema 2"):
        store.prepare()


def test_the_verdict_is_the_worst_of_what_was_found() -> None:
    weak, red = (Severity.WEAK, "slow", "mend it"), (Severity.RED, "lossy", "change it")
    store = Store()
    assert store.verdict([], {}).severity is Severity.GREEN
    assert store.verdict([weak], {}).severity is Severity.WEAK
    both = store.verdict([weak, red], {})
    assert (both.severity, both.message) == (Severity.RED, "slow; lossy")
    assert both.fix == "mend it; change it"
