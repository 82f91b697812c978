"""The blocks around the rows, as they are made of one change. That they are Debezium's is shown in
``tests/integration/test_debezium.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from duly.cdc.debezium import Debezium
from duly.errors import ConfigurationError
from duly.kernel.changes import Change

MARIADB = Debezium("shop.store.orders", connector="mariadb")
MYSQL = Debezium("shop.store.orders", connector="mysql", database="other")
AT = datetime(2026, 1, 1, 0, 0, 1, 5, tzinfo=UTC)


def source(form: Debezium, ordinal: int = 0, **given: Any) -> dict[str, Any]:
    parts = {"position": "00000A000001F400000000", "xid": "0-7-9", "committed_at": AT, **given}
    change = Change("s", "orders", "create", {"id": 1}, None, {"id": 1}, ordinal=ordinal, **parts)
    (emit,) = form(change)
    found: dict[str, Any] = emit.message.source
    return found


def test_each_change_of_a_transaction_has_its_own_row() -> None:
    first, second = source(MARIADB), source(MARIADB, 1)
    assert (first.pop("row"), second.pop("row")) == (0, 1)
    assert first == second
    assert (first["file"], first["pos"], first["server_id"], first["db"]) == (
        "000010",
        500,
        7,
        "store",
    )
    assert (first["ts_ms"], first["ts_us"]) == (1_767_225_601_000, 1_767_225_601_000_005)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gtid", {"xid": "0-7-10"}),
        ("pos", {"position": "00000A000001F500000000"}),
        ("ts_ms", {"committed_at": None}),
    ],
)
def test_another_transaction_is_told_as_another(name: str, other: dict[str, Any]) -> None:
    assert source(MARIADB)[name] != source(MARIADB, **other)[name]


def test_mysql_does_not_say_its_server_in_a_gtid() -> None:
    found = source(MYSQL, xid="3e11fa47-71ca-11e1-9e33-c80aa9429562:5")
    assert (found["server_id"], found["db"], found["connector"]) == (0, "other", "mysql")
    assert source(MYSQL, xid="")["gtid"] is None


def test_a_row_of_a_snapshot_stands_at_its_place() -> None:
    change = Change(
        "s", "orders", "read", {"id": 1}, None, {"id": 1}, "00000A000001F400000000.ab12", 0
    )
    (emit,) = MARIADB(change)
    assert (emit.message.op, emit.message.source["snapshot"], emit.message.ts_ms) == (
        "r",
        "true",
        None,
    )


def test_what_cannot_be_told() -> None:
    for wrong in (
        {"types": {"a": "bit"}},
        {"decimals": "exact"},
        {"connector": "mysql", "types": {"a": "int"}},
    ):
        with pytest.raises(ConfigurationError):
            Debezium("shop.store.orders", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        Debezium("orders")
