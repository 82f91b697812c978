"""What is found wrong with a server's log and with tables, and the statements that mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from duly.databases.mysql import changes_catalog
from duly.databases.mysql.changes_catalog import (
    Log,
    Server,
    find_log,
    find_server,
    find_tables,
    inspect_capture,
    refuse_server,
    refuse_tables,
)
from duly.errors import ConfigurationError
from duly.sources import TableSpec

GOOD = {
    "binlog_expire_logs_seconds": "864000",
    "binlog_format": "ROW",
    "binlog_row_image": "FULL",
    "binlog_row_metadata": "FULL",
    "log_bin": "ON",
    "server_id": "1",
    "version": "10.11.6-MariaDB-log",
}
LOG = Log("bin", 1, 400, (), ())


class Catalog:
    """Answers as a server does. status: of the log; columns: name, type and extra of each."""

    def __init__(
        self,
        settings: dict[str, str] | None = None,
        *,
        status: Sequence[Any] = ("bin.000001", 400, "", ""),
        table: Sequence[Any] = ("shop", "thing", "BASE TABLE", "InnoDB", None),
        key: Sequence[str] = ("id",),
    ) -> None:
        self.settings = {**GOOD, **(settings or {})}
        self.status, self.table, self.key = status, table, key
        self.asked: list[str] = []

    def __call__(self, sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        self.asked.append(sql)
        if sql.startswith("SHOW GLOBAL"):
            return list(self.settings.items())
        if sql in ("SHOW MASTER STATUS", "SHOW BINARY LOG STATUS"):
            return [tuple(self.status)] if self.status else []
        if values[1] != self.table[1]:
            return []
        if "information_schema.columns" in sql:
            return [("id", "int", "int(11)", ""), ("g", "int", "int(11)", "VIRTUAL GENERATED")]
        if "information_schema.statistics" in sql:
            return [(name,) for name in self.key]
        return [tuple(self.table)]

    @property
    def server(self) -> Server:
        return find_server(self)


def codes(catalog: Catalog, spec: TableSpec | None = None) -> list[str]:
    found = inspect_capture(catalog, [spec or TableSpec("thing")], schema="shop")
    return [finding.code for finding in found]


def test_a_good_server_and_table() -> None:
    assert codes(Catalog()) == ["CDC_BINLOG"]
    refuse_server(Catalog().server)
    refuse_tables(
        [TableSpec("shop.thing")],
        find_tables(Catalog(), [TableSpec("shop.thing")], schema="x"),
        LOG,
    )


@pytest.mark.parametrize(
    ("settings", "code", "fix"),
    [
        ({"binlog_format": "MIXED"}, "BINLOG_FORMAT", "SET GLOBAL binlog_format = 'ROW'"),
        ({"binlog_row_image": "MINIMAL"}, "CDC_ROW_IMAGE", "SET GLOBAL binlog_row_image = 'FULL'"),
        ({"binlog_row_metadata": ""}, "CDC_ROW_METADATA", "binlog_row_metadata = 'FULL'"),
        ({"binlog_row_value_options": "PARTIAL_JSON"}, "CDC_ROW_IMAGE", "value_options = ''"),
        ({"server_id": "0"}, "CDC_SERVER_ID", "SET GLOBAL server_id = 1"),
        ({"log_bin": "OFF"}, "CDC_NO_LOG", "log_bin"),
    ],
)
def test_a_log_that_does_not_say_enough_is_refused(
    settings: dict[str, str], code: str, fix: str
) -> None:
    catalog = Catalog(settings)
    with pytest.raises(ConfigurationError, match=fix) as caught:
        refuse_server(catalog.server)
    assert caught.value.code == code
    assert code in codes(catalog)


def test_packed_transactions_ask_for_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog({"binlog_transaction_compression": "ON"})
    assert codes(catalog) == ["CDC_BINLOG"]
    monkeypatch.setattr(changes_catalog, "can_unzstd", lambda: False)
    assert "BINLOG_ZSTD" in codes(catalog)
    with pytest.raises(ConfigurationError, match="zstd") as caught:
        refuse_server(catalog.server)
    assert caught.value.code == "BINLOG_ZSTD"


def test_a_log_that_is_dropped_within_a_day_is_weak() -> None:
    assert "CDC_LOG_RETENTION" in codes(Catalog({"binlog_expire_logs_seconds": "3600"}))
    days = {"binlog_expire_logs_seconds": "0", "expire_logs_days": "0.5"}
    assert "CDC_LOG_RETENTION" in codes(Catalog(days))
    assert codes(Catalog({"binlog_expire_logs_seconds": "0"})) == ["CDC_BINLOG"]  # for ever


@pytest.mark.parametrize(
    ("catalog", "spec", "code"),
    [
        (Catalog(), TableSpec("nowhere"), "CDC_TABLE_MISSING"),
        (Catalog(table=("shop", "thing", "VIEW", None, None)), None, "CDC_TABLE_MISSING"),
        (Catalog(), TableSpec("thing", exclude=("x",)), "CDC_COLUMN_MISSING"),
        (Catalog(), TableSpec("thing", include=("g",)), "CDC_COLUMN_MISSING"),
        (Catalog(table=("shop", "thing", "BASE TABLE", "Aria", None)), None, "NOT_INNODB"),
        (Catalog(table=("shop", "thing", "BASE TABLE", "InnoDB", "fk")), None, "CDC_CASCADES"),
        (Catalog(key=()), None, "CDC_NO_PRIMARY_KEY"),
        (Catalog(status=("bin.000001", 4, "other", "")), None, "CDC_LOG_FILTERED"),
        (Catalog(status=("bin.000001", 4, "", "a, shop")), None, "CDC_LOG_FILTERED"),
        (Catalog(status=()), None, "CDC_NO_LOG"),
        (Catalog(status=("binlog-0.ibb", 4, "", "")), None, "CDC_NO_LOG"),
    ],
)
def test_what_cannot_be_captured_is_found(
    catalog: Catalog, spec: TableSpec | None, code: str
) -> None:
    assert code in codes(catalog, spec)


def test_a_rule_may_name_the_key_of_a_table_without_one() -> None:
    assert codes(Catalog(key=()), TableSpec("thing", key=("id",))) == ["CDC_BINLOG"]


def test_newer_servers_of_mysql_are_asked_in_their_words() -> None:
    catalog = Catalog({"version": "8.4.3", "server_uuid": "u"})
    assert find_log(catalog, catalog.server) == LOG
    assert catalog.asked[-1] == "SHOW BINARY LOG STATUS"
    assert catalog.server.name == "mysql:u"
    assert Catalog().server.name == "mariadb:1"
