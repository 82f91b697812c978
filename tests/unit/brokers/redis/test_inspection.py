from __future__ import annotations

import pytest

from duly.brokers.redis import inspection
from duly.brokers.redis.settings import parse
from duly.ports import Severity

GREEN, WEAK, RED = Severity.GREEN, Severity.WEAK, Severity.RED
AOF = {"aof_enabled": "1", "appendonly": "yes"}


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({}, RED),
        ({"aof_enabled": "0", "appendonly": "no", "appendfsync": "always"}, RED),
        (AOF | {"appendfsync": "always"}, GREEN),
        (AOF | {"appendfsync": "everysec"}, WEAK),
        (AOF | {"appendfsync": "no"}, RED),
        ({"aof_enabled": "1"}, WEAK),  # CONFIG is not allowed
        (AOF | {"appendfsync": "always", "aof_last_write_status": "err"}, RED),
    ],
)
def test_durability(facts: dict[str, str], severity: Severity) -> None:
    found = inspection.durability(facts)
    assert found.severity is severity
    assert bool(found.fix) is (severity is not GREEN)


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({"maxmemory-policy": "noeviction", "maxmemory": "0"}, GREEN),
        ({"maxmemory_policy": "noeviction", "maxmemory": "100", "used_memory": "50"}, GREEN),
        ({"maxmemory_policy": "noeviction", "maxmemory": "100", "used_memory": "90"}, WEAK),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "100"}, RED),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, WEAK),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": "100"}, WEAK),
        ({}, WEAK),
    ],
)
def test_eviction(facts: dict[str, str], severity: Severity) -> None:
    assert inspection.eviction(facts).severity is severity


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({"role": "master", "connected_slaves": "0"}, GREEN),
        ({"role": "master", "connected_slaves": "2"}, WEAK),
        ({"role": "slave"}, RED),
        ({}, WEAK),
    ],
)
def test_replication(facts: dict[str, str], severity: Severity) -> None:
    assert inspection.replication(facts).severity is severity


@pytest.mark.parametrize(
    ("info", "severity"),
    [
        ({"redis_version": "6.0.16"}, RED),
        ({"redis_version": "6.2.0"}, GREEN),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, GREEN),
        ({}, RED),
    ],
)
def test_version(info: dict[str, str], severity: Severity) -> None:
    assert inspection.version(info).severity is severity


def test_tls() -> None:
    of = {
        url: inspection.tls(parse(url)).severity
        for url in (
            "rediss://far",
            "rediss://far/?verify=verify_none",
            "redis://far",
            "redis://127.0.0.1",
        )
    }
    assert list(of.values()) == [GREEN, RED, WEAK, GREEN]


def test_rights() -> None:
    assert [f.severity for f in inspection.missing_rights([], [])] == [GREEN]
    assert [f.severity for f in inspection.missing_rights([], ["EVAL"])] == [WEAK]
    assert [f.severity for f in inspection.missing_rights(["XADD"], ["EVAL"])] == [RED]
