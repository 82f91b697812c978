"""What the operator's verbs do to rows, holds and the audit, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from duly.adapters import make_database
from duly.config import Settings
from duly.errors import NotFoundError, UndecodableError, WrongStatusError
from duly.message import Event, Registry
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.operator import By, Operator, Scope
from duly.outbox.schema import Schema
from duly.ports import Database, Statement
from tests.unit.outbox.rows import Rows

ANNA = By("anna", "ticket 12")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    url = request.getfixturevalue(f"{request.param}_url")
    database = make_database(Settings(database=url))
    Schema(database, "shop").upgrade()
    yield database
    database.close()


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


@pytest.fixture
def operator(database: Database) -> Operator:
    return Operator(database.connect)


@pytest.mark.parametrize("status", ["failed", "held"])
@pytest.mark.parametrize("verb", ["retry", "resend"])
def test_back_to_work_is_retry_due_now(
    rows: Rows, operator: Operator, status: str, verb: str
) -> None:
    row = rows.outbox(status=status, last_error="REFUSED: no")
    acted = operator.act(verb, "outbox", row, by=ANNA)
    assert (acted.status, acted.changed, acted.message_id) == ("retry", True, "m1")
    assert rows.due("outbox") == [row]
    assert rows.row("outbox", row)["attempts"] == (0 if verb == "retry" else 8)
    assert rows.audits() == [(verb, "anna", f"outbox/{row}", "m1")]


@pytest.mark.parametrize(("verb", "status"), [("skip", "skipped"), ("drop", "dropped")])
def test_taken_out_for_good(rows: Rows, operator: Operator, verb: str, status: str) -> None:
    row = rows.outbox()
    operator.act(verb, "outbox", row, by=ANNA)
    stored = rows.row("outbox", row)
    assert stored["status"] == status
    assert stored["settled_at"] is not None
    assert rows.due("outbox") == []


@pytest.mark.parametrize("status", ["ready", "retry", "sent", "unrouted"])
def test_a_row_that_may_be_in_flight_is_not_touched(
    rows: Rows, operator: Operator, status: str
) -> None:
    row = rows.outbox(status=status)
    before = rows.row("outbox", row)
    for verb in ("retry", "resend", "skip", "drop"):
        with pytest.raises(WrongStatusError):
            operator.act(verb, "outbox", row, by=ANNA)
    with pytest.raises(WrongStatusError):
        operator.edit("outbox", row, b"{}", by=ANNA)
    assert rows.row("outbox", row) == before
    assert rows.audits() == []


def test_an_edit_cannot_reach_a_follower_that_the_owner_may_be_sending(
    rows: Rows, operator: Operator
) -> None:
    """Nothing blocks the key, so its lane's owner drains it: the follower may be on the wire."""
    follower = rows.outbox(status="held", key="k")
    rows.hold(None)
    for act in (
        lambda: operator.edit("outbox", follower, b"{}", by=ANNA),
        lambda: operator.act("drop", "outbox", follower, by=ANNA, out_of_order=True),
    ):
        with pytest.raises(WrongStatusError) as refused:
            act()
        assert refused.value.code == "KEY_WAITS"
    assert rows.row("outbox", follower)["message_id"] == "m1"


def test_a_row_that_changed_since_it_was_read_is_not_overwritten(
    database: Database, rows: Rows
) -> None:
    """The compare-and-set itself: its owner changes the row between the read and the write."""
    row = rows.outbox(status="held", last_error="UNKNOWN_TYPE: x")
    connection = database.connect()
    values = {"id": row, "message_id": "m1", "was": "held", "follower": False, "status": "dropped"}
    values |= {"attempts": 0, "error": None, "final": True}
    rows.run("UPDATE duly_outbox SET status = 'retry'")
    assert connection.ask(Statement("operator.outbox_move", values)).count == 0
    rows.run("UPDATE duly_outbox SET status = 'held', message_id = 'm2'")
    assert connection.ask(Statement("operator.outbox_move", values)).count == 0
    rows.run("UPDATE duly_outbox SET message_id = 'm1', last_error = NULL")
    assert connection.ask(Statement("operator.outbox_move", values)).count == 0
    rows.run("UPDATE duly_outbox SET last_error = 'X'")
    assert connection.ask(Statement("operator.outbox_move", values)).count == 1
    connection.close()


def test_a_verb_twice_changes_nothing_the_second_time(rows: Rows, operator: Operator) -> None:
    for verb in ("retry", "resend", "skip", "drop"):
        row = rows.outbox()
        first = operator.act(verb, "outbox", row, by=ANNA)
        again = operator.act(verb, "outbox", row, by=ANNA)
        assert (first.changed, again.changed, again.status) == (True, False, first.status)
        other = "drop" if verb != "drop" else "skip"
        with pytest.raises(WrongStatusError):
            operator.act(other, "outbox", row, by=ANNA)
    assert len(rows.audits()) == 4


def test_a_row_that_failed_again_is_acted_on_again(rows: Rows, operator: Operator) -> None:
    row = rows.outbox()
    operator.act("retry", "outbox", row, by=ANNA)
    rows.run("UPDATE duly_outbox SET status = 'failed', attempts = 8")
    assert operator.act("retry", "outbox", row, by=ANNA).changed
    assert len(rows.audits()) == 2


def test_the_message_one_looked_at_must_be_the_one_acted_on(rows: Rows, operator: Operator) -> None:
    row = rows.outbox(message_id="new")
    with pytest.raises(WrongStatusError) as refused:
        operator.act("drop", "outbox", row, by=ANNA, message_id="old")
    assert refused.value.code == "MESSAGE_CHANGED"
    assert operator.act("drop", "outbox", row, by=ANNA, message_id="new").changed


def test_nothing_is_there(operator: Operator) -> None:
    for box in ("outbox", "inbox"):
        with pytest.raises(NotFoundError):
            operator.act("drop", box, 4711, by=ANNA)
        with pytest.raises(NotFoundError):
            operator.show(box, 4711)


# --- order per key --------------------------------------------------------------------------------
def test_a_blocker_goes_back_to_its_place_and_keeps_its_hold(
    rows: Rows, operator: Operator
) -> None:
    row = rows.outbox(key="k")
    follower = rows.outbox(key="k", status="held", message_id="m2")
    rows.hold(row)
    assert operator.act("retry", "outbox", row, by=ANNA).status == "retry"
    assert rows.holds() == [("outbox", "k", row)]
    assert rows.row("outbox", follower)["status"] == "held"


@pytest.mark.parametrize("verb", ["skip", "drop"])
def test_taking_the_blocker_out_frees_its_key_in_the_same_transaction(
    rows: Rows, operator: Operator, verb: str
) -> None:
    row = rows.outbox(key="k")
    rows.outbox(key="k", status="held", message_id="m2")
    rows.hold(row)
    operator.act(verb, "outbox", row, by=ANNA)
    assert rows.holds() == [("outbox", "k", None)]


def test_the_hold_dies_with_its_blocker_when_nobody_waits(rows: Rows, operator: Operator) -> None:
    row, other = rows.outbox(key="k"), rows.outbox(key="l")
    rows.hold(row)
    rows.hold(other, key="l")
    operator.act("skip", "outbox", row, by=ANNA)
    assert rows.holds() == [("outbox", "l", other)]


def test_a_key_that_moved_on_needs_the_word_and_gets_a_hold(rows: Rows, operator: Operator) -> None:
    row = rows.outbox(key="k")
    with pytest.raises(WrongStatusError) as refused:
        operator.act("retry", "outbox", row, by=ANNA)
    assert refused.value.code == "KEY_MOVED_ON"
    assert (rows.holds(), rows.audits()) == ([], [])
    assert operator.act("retry", "outbox", row, by=ANNA, out_of_order=True).status == "retry"
    assert rows.holds() == [("outbox", "k", row)]
    assert rows.due("outbox") == [row]


@pytest.mark.parametrize("drained", [False, True])
def test_out_of_order_into_a_key_with_a_queue_waits_in_it(
    rows: Rows, operator: Operator, drained: bool
) -> None:
    row = rows.outbox(key="k")
    blocker = rows.outbox(key="k", status="held" if drained else "retry", message_id="m2")
    rows.hold(None if drained else blocker)
    acted = operator.act("retry", "outbox", row, by=ANNA, out_of_order=True)
    assert acted.status == "held"
    assert rows.row("outbox", row)["last_error"] is None
    assert rows.holds() == [("outbox", "k", None if drained else blocker)]
    assert not operator.act("retry", "outbox", row, by=ANNA, out_of_order=True).changed


def test_a_follower_behind_a_blocker(rows: Rows, operator: Operator) -> None:
    blocker = rows.outbox(key="k")
    first = rows.outbox(key="k", status="held", message_id="m2")
    second = rows.outbox(key="k", status="held", message_id="m3")
    rows.hold(blocker)
    with pytest.raises(WrongStatusError) as refused:
        operator.act("retry", "outbox", first, by=ANNA, out_of_order=True)
    assert (refused.value.code, str(blocker) in refused.value.detail) == ("KEY_WAITS", True)
    assert operator.act("drop", "outbox", first, by=ANNA).status == "dropped"
    edited = operator.edit("outbox", second, b'{"order_id":8}', by=ANNA)
    assert (edited.status, rows.row("outbox", second)["last_error"]) == ("held", None)
    assert rows.holds() == [("outbox", "k", blocker)]


@pytest.mark.parametrize(("mode", "free"), [("none", True), ("key", False), (None, False)])
def test_inbox_rows_are_bound_to_their_key_by_the_mode_of_their_group(
    database: Database, rows: Rows, operator: Operator, mode: str | None, free: bool
) -> None:
    if mode:
        Schema(database, "shop").record_groups({"billing": mode})
    row = rows.inbox(key="k")
    if not free:
        with pytest.raises(WrongStatusError):
            operator.act("reprocess", "inbox", row, by=ANNA)
    acted = operator.act("reprocess", "inbox", row, by=ANNA, out_of_order=not free)
    assert acted.status == "retry"
    assert rows.holds() == ([] if free else [("inbox:billing", "k", row)])


def test_skipping_in_the_inbox_frees_only_the_groups_own_hold(
    rows: Rows, operator: Operator
) -> None:
    row = rows.inbox(key="k")
    rows.inbox(key="k", status="held", message_id="m2")
    rows.hold(row, scope="inbox:billing")
    rows.hold(row, scope="inbox:mail")
    operator.act("skip", "inbox", row, by=ANNA)
    assert rows.holds() == [("inbox:billing", "k", None), ("inbox:mail", "k", row)]


# --- edit -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("box", ["outbox", "inbox"])
def test_an_edit_gives_a_new_id_in_the_same_position(
    rows: Rows, operator: Operator, box: str
) -> None:
    row = getattr(rows, box)()
    acted = operator.edit(box, row, b'{"order_id":8}', by=ANNA, message_id="m1")
    stored = rows.row(box, row)
    assert acted.message_id == stored["message_id"] != "m1"
    assert bytes(stored["payload"]) == b'{"order_id":8}'
    assert json.loads(stored["headers"]) == {"source": "shop", "dulyreplaces": "m1"}
    assert (stored["status"], stored["attempts"], stored["last_error"]) == ("retry", 0, None)
    if box == "inbox":
        assert stored["dedupe_key"] == "shop/m1"  # its effects stay its own
    detail = operator.show(box, row).audit[0].detail
    assert detail["new_id"] == acted.message_id
    assert detail["sha256"] != detail["sha256_was"]


def test_the_same_edit_twice_is_one_edit(rows: Rows, operator: Operator) -> None:
    row = rows.outbox()
    first = operator.edit("outbox", row, b"[1]", by=ANNA, message_id="m1")
    again = operator.edit("outbox", row, b"[1]", by=ANNA, message_id="m1")
    assert (again.changed, again.message_id) == (False, first.message_id)
    with pytest.raises(WrongStatusError):
        operator.edit("outbox", row, b"[2]", by=ANNA, message_id="m1")
    assert len(rows.audits()) == 1


def test_an_edited_payload_must_fit_its_type(database: Database, rows: Rows) -> None:
    class OrderPlaced(Event, name="order.placed", topic="orders"):
        order_id: int

    registry = Registry()
    registry.of(OrderPlaced)
    operator = Operator(database.connect, registry=registry)
    row = rows.outbox()
    with pytest.raises(UndecodableError):
        operator.edit("outbox", row, b'{"order_id":"x"}', by=ANNA)
    assert operator.edit("outbox", row, b'{"order_id":9}', by=ANNA).changed


# --- many, looking, pausing -----------------------------------------------------------------------
def test_a_bulk_verb_touches_its_scope_and_reports_the_rest(rows: Rows, database: Database) -> None:
    seen: list[OperatorActed] = []
    hooks = Hooks()
    hooks.add(lambda fact: seen.append(fact))  # type: ignore[arg-type]
    operator = Operator(database.connect, hooks=hooks)
    failed = [rows.outbox(message_id=f"m{n}", topic="mails") for n in range(105)]
    moved_on = rows.outbox(message_id="k1", topic="mails", key="k")
    other = rows.outbox(message_id="o1", topic="orders")
    scope = Scope(topic="mails", statuses=("failed",), error="REFUSED")
    assert operator.count("outbox", scope) == 106
    with pytest.raises(WrongStatusError) as refused:
        operator.act_on_all("retry", "outbox", scope, by=ANNA, expected=107)
    assert refused.value.code == "COUNT_CHANGED"
    assert rows.due("outbox") == []
    swept = operator.act_on_all("retry", "outbox", scope, by=ANNA, expected=106)
    assert (swept.changed, [(r.id, r.code) for r in swept.refused]) == (
        105,
        [(moved_on, "KEY_MOVED_ON")],
    )
    assert rows.due("outbox") == failed
    assert rows.row("outbox", other)["status"] == "failed"
    assert len(rows.audits()) == 105
    assert [fact.count for fact in seen] == [100, 5]


def test_a_bulk_retry_of_one_key_restores_its_order(rows: Rows, operator: Operator) -> None:
    first, second, third = (rows.outbox(key="k", message_id=f"m{n}") for n in range(3))
    operator.act_on_all("retry", "outbox", Scope(), by=ANNA, expected=3, out_of_order=True)
    assert rows.due("outbox") == [first]
    assert rows.holds() == [("outbox", "k", first)]
    assert [rows.row("outbox", r)["status"] for r in (second, third)] == ["held", "held"]


def test_find_by_every_condition(rows: Rows, operator: Operator) -> None:
    old = rows.inbox(message_id="a", age=1000)
    new = rows.inbox(message_id="b", topic="mails", last_error="UNDECODABLE: x")
    mail = rows.inbox(message_id="c", group_name="mail", handler="mail/order.placed")
    done = rows.inbox(message_id="d", status="done")

    def ids(**conditions: object) -> list[int]:
        return [line.id for line in operator.find("inbox", Scope(**conditions))]  # type: ignore[arg-type]

    assert ids() == [old, new, mail]
    assert ids(statuses=("done", "failed"), group="billing") == [old, new, done]
    assert ids(topic="mails") == [new]
    assert ids(error="UNDECODABLE") == [new]
    assert ids(error="%") == ids(error="_") == []
    created_at = operator.find("inbox", Scope())[1].created_at
    assert ids(since=created_at - 500) == [new, mail]
    assert [line.id for line in operator.find("inbox", Scope(), limit=1, after=old)] == [new]


def test_show_tells_everything(rows: Rows, operator: Operator) -> None:
    row = rows.inbox(key="k", headers='{"source":"shop","tenant":"7"}')
    rows.hold(row, scope="inbox:billing")
    rows.run(
        "INSERT INTO duly_effect (group_name, handler, dedupe_key, step, provider_key, arguments,"
        f" state, created_at) VALUES ('billing', 'billing/order.placed', 'shop/m1', 'charge', 'pk',"
        f" 'hash', 'intent', {rows.ago(1)})"
    )
    operator.act("retry", "inbox", row, by=ANNA)
    detail = operator.show("inbox", row)
    assert detail.payload == {"order_id": 7}
    assert detail.headers["tenant"] == "7"
    assert detail.waits_for == row
    assert [(effect.step, effect.state) for effect in detail.effects] == [("charge", "intent")]
    assert [(a.verb, a.actor, a.reason) for a in detail.audit] == [("retry", "anna", "ticket 12")]
    assert detail.line.created_at > 1_600_000_000


def test_bytes_that_are_no_json_are_shown_as_base64(rows: Rows, operator: Operator) -> None:
    row = rows.outbox(payload=b"\xff\x00")
    assert operator.show("outbox", row).payload == {"base64": "/wA="}


def test_stats_count_by_group_topic_and_status(rows: Rows, operator: Operator) -> None:
    rows.inbox(message_id="a")
    rows.inbox(message_id="b", status="done")
    rows.inbox(message_id="c", status="done")
    found = [(s.group, s.topic, s.status, s.rows) for s in operator.stats("inbox")]
    assert found == [("billing", "orders", "done", 2), ("billing", "orders", "failed", 1)]
    assert operator.stats("outbox") == []


@pytest.mark.parametrize(("box", "name"), [("outbox", "orders"), ("inbox", "billing")])
def test_pause_and_resume(rows: Rows, operator: Operator, box: str, name: str) -> None:
    assert operator.pause(box, name, by=ANNA)
    assert not operator.pause(box, name, by=ANNA)
    assert operator.paused(box) == [name]
    stored = rows.run("SELECT name FROM duly_meta WHERE name LIKE 'pause/%'")
    assert [row["name"] for row in stored] == [f"pause/{box}/{name}"]
    assert operator.resume(box, name, by=ANNA)
    assert not operator.resume(box, name, by=ANNA)
    assert operator.paused(box) == []
    assert [a.verb for a in operator.history(f"pause/{box}/{name}")] == ["resume", "pause"]


def test_two_operators_at_once_do_it_once(rows: Rows, database: Database) -> None:
    row = rows.outbox(key="k")
    rows.hold(row)
    results: list[bool] = []
    start = threading.Barrier(4, timeout=10)

    def go() -> None:
        operator = Operator(database.connect)
        start.wait()
        results.append(operator.act("skip", "outbox", row, by=ANNA).changed)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [False, False, False, True]
    assert len(rows.audits()) == 1
    assert rows.holds() == []
