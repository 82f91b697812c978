from __future__ import annotations

import pytest

from duly.brokers.kafka.settings import parse
from duly.brokers.kafka.verdicts import of_topic, tls
from duly.ports import Finding, Severity

GREEN, WEAK, RED = Severity.GREEN, Severity.WEAK, Severity.RED
FINE = {"min.insync.replicas": "2", "retention.ms": "604800000", "cleanup.policy": "delete"}


def verdict(copies: int = 3, **changed: str) -> dict[str, Finding]:
    given = FINE | {name.replace("_", "."): value for name, value in changed.items()}
    found = of_topic(given, copies)
    assert all(f.fix for f in found if f.severity is not GREEN)
    return {f.code: f for f in found}


def test_three_copies_of_which_two_must_be_there() -> None:
    assert {f.severity for f in verdict().values()} == {GREEN}


@pytest.mark.parametrize(("copies", "insync"), [(1, "1"), (3, "1"), (2, "2"), (2, "1")])
def test_fewer_copies_are_weak(copies: int, insync: str) -> None:
    assert verdict(copies, min_insync_replicas=insync)["KAFKA_COPIES"].severity is WEAK


def test_an_unclean_election_is_red() -> None:
    found = verdict(unclean_leader_election_enable="true")
    assert found["KAFKA_UNCLEAN_ELECTION"].severity is RED


@pytest.mark.parametrize(
    ("changed", "severity"),
    [
        ({"retention_ms": "-1"}, GREEN),
        ({"retention_ms": "86400000"}, WEAK),
        ({"retention_ms": "60000"}, RED),
        ({"retention_bytes": "1000000"}, WEAK),
        ({"cleanup_policy": "compact"}, RED),
        ({"cleanup_policy": "compact,delete"}, RED),
    ],
)
def test_how_long_messages_are_kept(changed: dict[str, str], severity: Severity) -> None:
    assert verdict(**changed)["KAFKA_RETENTION"].severity is severity


def test_a_topic_that_takes_less_than_a_batch_is_weak() -> None:
    assert verdict(max_message_bytes="100000")["KAFKA_MESSAGE_BYTES"].severity is WEAK


@pytest.mark.parametrize(
    ("url", "severity"),
    [
        ("kafka://localhost", GREEN),
        ("kafka://localhost,far.example", WEAK),
        ("kafkas://far.example", GREEN),
        ("kafkas://far.example?verify=verify_none", RED),
    ],
)
def test_tls(url: str, severity: Severity) -> None:
    assert tls(parse(url)).severity is severity
