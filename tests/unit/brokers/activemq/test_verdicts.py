from __future__ import annotations

from typing import Any

import pytest

from duly.brokers.activemq.settings import parse
from duly.brokers.activemq.verdicts import judge
from duly.ports import Severity

GREEN, WEAK, RED = Severity.GREEN, Severity.WEAK, Severity.RED
SAFE = {
    "version": "2.57.0",
    "persistenceEnabled": True,
    "journalSyncTransactional": True,
    "journalSyncNonTransactional": True,
}


def verdicts(
    url: str = "stomp://localhost", address: dict[str, Any] | None = None, **broker: Any
) -> dict[str, Severity]:
    found = judge(parse(url), SAFE | broker, address or {}, stranded={})
    assert all(f.fix for f in found if f.severity is not GREEN)
    return {f.code: f.severity for f in found}


def test_a_server_that_writes_and_waits_is_green() -> None:
    assert set(verdicts().values()) == {GREEN}


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("2.57.0", GREEN), ("3.0.0", GREEN), ("2.56.1", WEAK), ("2.9", WEAK), ("?", WEAK)],
)
def test_a_server_that_strands_messages_is_weak(version: str, verdict: Severity) -> None:
    assert verdicts(version=version)["ACTIVEMQ_SERVER"] is verdict


@pytest.mark.parametrize(
    ("setting", "value", "verdict"),
    [
        ("persistenceEnabled", False, RED),
        ("persistenceEnabled", None, RED),
        ("journalSyncTransactional", False, WEAK),
        ("journalSyncNonTransactional", False, WEAK),
    ],
)
def test_durability_is_what_the_server_says(setting: str, value: Any, verdict: Severity) -> None:
    assert verdicts(**{setting: value})["ACTIVEMQ_DURABILITY"] is verdict


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ({"addressFullMessagePolicy": "DROP"}, "ACTIVEMQ_DROPS"),
        ({"expiryDelay": 0}, "ACTIVEMQ_EXPIRES"),
        ({"maxExpiryDelay": 5000}, "ACTIVEMQ_EXPIRES"),
    ],
)
def test_addresses_by_which_messages_vanish_are_red(address: dict[str, Any], code: str) -> None:
    assert verdicts(address=address)[code] is RED
    assert set(verdicts(address={"addressFullMessagePolicy": "PAGE"}).values()) == {GREEN}


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("stomp://127.0.0.1", GREEN),
        ("stomp://far.example", WEAK),
        ("stomp+tls://far.example", GREEN),
        ("stomp+tls://far.example?verify=verify_none", RED),
    ],
)
def test_tls(url: str, verdict: Severity) -> None:
    assert verdicts(url)["ACTIVEMQ_TLS"] is verdict


def test_messages_under_way_to_nobody_are_told_with_their_queue() -> None:
    found = judge(parse("stomp://localhost"), SAFE, {}, stranded={"duly.group.a~t": 3})
    [told] = [finding for finding in found if finding.code == "ACTIVEMQ_STRANDED"]
    assert told.severity is WEAK, "it does not stop a start"
    assert "3 of duly.group.a~t" in told.message
    assert "Restart" in told.fix
    assert told.facts == {"duly.group.a~t": "3"}
