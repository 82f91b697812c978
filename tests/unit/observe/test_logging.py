from __future__ import annotations

import logging

import pytest

from duly.observe import facts
from duly.observe.logging import _LINES, log_fact
from tests.unit.observe.test_facts import ALL, sample


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_every_fact_has_a_line_and_says_all_its_fields(cls, caplog):
    assert cls in _LINES
    fact = sample(cls)
    with caplog.at_level(logging.DEBUG, "duly"):
        log_fact(fact)
    (record,) = caplog.records
    assert record.name.startswith("duly.")
    assert record.fact == fact.name
    text = record.getMessage()
    assert text.startswith(fact.name + " ")
    for name in fact.__struct_fields__:
        assert getattr(record, name) == getattr(fact, name)
        assert f"{name}=" in text


def test_the_text(caplog):
    with caplog.at_level(logging.DEBUG, "duly"):
        log_fact(facts.Relayed(topic="orders", count=1000, seconds=0.1234567))
        log_fact(facts.LeaseTaken(what="lane", names=("lane.1", "lane.2")))
    assert [r.getMessage() for r in caplog.records] == [
        "outbox.relayed topic=orders count=1000 seconds=0.123",
        "runtime.lease_taken what=lane names=lane.1,lane.2",
    ]


@pytest.mark.parametrize("box", ["outbox", "inbox"])
def test_facts_of_both_boxes_go_to_the_logger_of_their_box(box, caplog):
    log_fact(facts.Failed(box=box, message_id="1", topic="t", code="X", attempts=8))
    assert caplog.records[0].name == {"outbox": "duly.relay", "inbox": "duly.consume"}[box]
    assert caplog.records[0].levelno == logging.ERROR


def test_what_a_foreign_producer_wrote_cannot_forge_a_line(caplog):
    with caplog.at_level(logging.DEBUG, "duly"):
        log_fact(facts.Skipped(group="g", type="a\nERROR forged\x1b[2J\u202e b", count=1))
    text = caplog.records[0].getMessage()
    assert text.isascii()
    assert text.isprintable()
    assert "type='a\\nERROR forged" in text


def test_a_level_that_is_off_costs_no_text(caplog):
    class Loud:
        def __str__(self) -> str:
            raise AssertionError("formatted")

    with caplog.at_level(logging.INFO, "duly"):
        log_fact(facts.Skipped(group="g", type=Loud(), count=1))  # type: ignore[arg-type]
    assert not caplog.records


def test_a_fact_of_somebody_else_is_logged_too(caplog):
    class Billed(facts.Fact, frozen=True, kw_only=True):
        name = "shop.billed"
        count: int

    with caplog.at_level(logging.INFO, "duly"):
        log_fact(Billed(count=2))
    assert caplog.records[0].getMessage() == "shop.billed count=2"


def test_it_configures_nothing():
    assert logging.getLogger("duly").handlers == []
    assert logging.getLogger("duly.relay").level == logging.NOTSET
