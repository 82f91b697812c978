from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from duly.errors import PermanentError
from duly.inbox.identity import business_key, busy_key, message_key
from duly.message import HEADER_REPLACES, HEADER_SOURCE, Message


def message(id: str, source: str = "", **headers: str) -> Message:
    return Message(id, "t", "event", "t", None, b"", {HEADER_SOURCE: source, **headers})


def test_id_and_source_never_run_into_each_other() -> None:
    keys = {
        message_key(message(i, s))
        for i, s in [("a", "b"), ("ab", ""), ("", "ab"), ("a@b", ""), ("a", "@b")]
    }
    assert len(keys) == 5


def test_an_edited_message_keeps_its_identity() -> None:
    assert message_key(message("new", "s", **{HEADER_REPLACES: "old"})) == message_key(
        message("old", "s")
    )


def test_a_busy_key_is_neither_of_the_others() -> None:
    one = message("a", "b")
    assert busy_key(one) not in (message_key(one), "a")
    assert busy_key(one) != busy_key(message("a", "c"))


@pytest.mark.parametrize(("value", "key"), [("k", "k"), (7, "7"), (UUID(int=1), str(UUID(int=1)))])
def test_business_keys(value: Any, key: str) -> None:
    assert business_key(lambda _: value, None) == key


@pytest.mark.parametrize("value", [None, True, 1.5, "", "a\x1fb", "x" * 513, "\n", b"k", ["k"]])
def test_what_is_no_business_key(value: Any) -> None:
    with pytest.raises(PermanentError) as caught:
        business_key(lambda _: value, None)
    assert caught.value.code == "DEDUPE_KEY_INVALID"
