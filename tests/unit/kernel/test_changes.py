from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from duly.errors import AbsentValueError, UndecodableError
from duly.kernel.changes import ABSENT, Change, Intent, Op, Transaction


def change(
    op: Op,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    *,
    intents: tuple[Intent, ...] = (),
) -> Change:
    return Change("db", "public.orders", op, {"id": 1}, before, after, "7", 2, intents=intents)


A, B = {"status": "a", "note": 1}, {"status": "b", "note": 1}


def test_absent_is_no_value() -> None:
    assert repr(ABSENT) == "ABSENT"
    with pytest.raises(AbsentValueError):
        bool(ABSENT)


def test_ids_hang_on_the_place_alone() -> None:
    one, same = change("update", A, B), change("create", None, A)
    assert one.id == same.id != one.event_id("rule")
    ids = {one.event_id("rule"), one.event_id("rule", 1), one.event_id("rule1")}
    assert len(ids) == 3
    assert {UUID(text).version for text in (*ids, one.id)} == {8}
    assert {UUID(text).variant for text in ids} == {"specified in RFC 4122"}


def test_created_and_deleted() -> None:
    assert [change(op).created for op in ("create", "update", "read")] == [True, False, False]
    assert [change(op).deleted for op in ("delete", "truncate")] == [True, False]


def test_changed_looks_at_updates_only() -> None:
    update = change("update", A, B)
    assert update.changed("status")
    assert update.changed("note", "status")
    assert update.changed()
    assert not update.changed("note")
    assert not change("update", A, A).changed()
    assert not change("create", None, A).changed()
    assert not change("delete", A, None).changed("status")


def test_changed_raises_only_where_it_hangs_on_what_is_absent() -> None:
    half = change("update", {"status": "a", "note": ABSENT}, {"status": "b", "note": 1})
    assert half.changed("note", "status")
    assert half.changed()
    with pytest.raises(AbsentValueError, match=r"orders\.note"):
        half.changed("note")
    unchanged = change("update", {"note": 1}, {"note": ABSENT})
    with pytest.raises(AbsentValueError):
        unchanged.changed()
    with pytest.raises(AbsentValueError, match="before"):
        change("update", None, A).changed("status")
    with pytest.raises(AbsentValueError, match="stauts"):
        change("update", A, B).changed("stauts")


def test_became() -> None:
    assert change("update", A, B).became("status", "b")
    assert not change("update", B, B).became("status", "b")
    assert not change("update", A, B).became("status", "a")
    assert change("create", None, A).became("status", "a")
    assert change("read", None, A).became("status", "a")
    assert not change("delete", A, None).became("status", "a")
    assert not change("truncate").became("status", "a")


def test_became_asks_for_the_old_value_only_when_it_matters() -> None:
    assert not change("update", None, A).became("status", "b")
    with pytest.raises(AbsentValueError):
        change("update", None, A).became("status", "a")
    with pytest.raises(AbsentValueError, match="status"):
        change("update", {"status": ABSENT}, A).became("status", "a")
    with pytest.raises(AbsentValueError):
        change("update", A, {"status": ABSENT}).became("status", "a")


def test_moved() -> None:
    assert change("update", A, B).moved("status", "a", "b")
    assert not change("update", A, B).moved("status", "x", "b")
    assert not change("update", A, B).moved("status", "a", "x")
    assert not change("create", None, B).moved("status", "a", "b")
    with pytest.raises(AbsentValueError):
        change("update", None, B).moved("status", "a", "b")
    with pytest.raises(AbsentValueError):
        change("update", A, None).moved("status", "a", "b")


RESET = Intent("PasswordReset", b'{"by":7}')


def test_intents_by_name() -> None:
    told = change("update", A, B, intents=(Intent("Other"), RESET))
    assert told.intent("PasswordReset") is RESET
    assert told.intent("Nothing") is None
    assert RESET.json() == {"by": 7}
    assert Intent("Empty").json() is None
    with pytest.raises(UndecodableError) as error:
        Intent("Broken", b"secret").json()
    assert "secret" not in str(error.value)


def test_a_transaction_is_walked_and_asked() -> None:
    one, other = change("create", None, A), change("update", A, B)
    whole = Transaction("db", "7", "8", "x", None, [one, other], intents=(RESET,))
    assert list(whole) == [one, other]
    assert list(whole.of("orders")) == list(whole.of("public.orders")) == [one, other]
    assert list(whole.of("lines")) == []
    assert whole.intent("PasswordReset") is RESET
    assert whole.intent("Nothing") is None
    assert whole.event_id("rule") == whole.event_id("rule", 0) != whole.event_id("rule", 1)
    assert whole.event_id("rule") != one.event_id("rule")
