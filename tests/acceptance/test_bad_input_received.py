"""What a foreign sender may put into the broker: each ends in one row with a code, none stops the
others, and no byte of it is lost.
"""

from __future__ import annotations

from typing import Any

from duly import Tx
from duly.message import Message
from duly.observe.facts import Fact, Skipped
from duly.outbox.operator import By, Scope
from tests.acceptance.conftest import MakeShop
from tests.acceptance.shop_app import Charge, Placed, Shop, insert, placed

CAP = 200_000


def listen(shop: Shop) -> None:
    """Handlers that write what they are told."""

    @shop.app.on(Placed, group="sales")
    def bill(event: Placed, tx: Tx) -> None:
        tx.session.execute(insert(event.order_id))

    @shop.app.handle(Charge)
    def charge(command: Charge, tx: Tx) -> None:
        tx.session.execute(insert(command.order_id))


def changed(message: Message, **fields: Any) -> Message:
    """The same message with other fields."""
    return Message(**{**{n: getattr(message, n) for n in message.__struct_fields__}, **fields})


BAD = {
    "invalid UTF-8": (placed(b'{"order_id":1,"note":"\xff"}'), "failed UNDECODABLE"),
    "lone surrogate": (placed(b'{"order_id":1,"note":"\\ud800"}'), "failed UNDECODABLE"),
    "NaN": (placed(b'{"order_id":1,"note":NaN}'), "failed UNDECODABLE"),
    "1e400": (placed(b'{"order_id":1e400}'), "failed UNDECODABLE"),
    "text for a number": (placed(b'{"order_id":"9223372036854775808"}'), "failed UNDECODABLE"),
    "depth 100,000": (
        placed(b'{"order_id":1,"note":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        "failed UNDECODABLE",
    ),
    "no JSON": (placed(b"\x80\x04."), "failed UNDECODABLE"),
    "0 bytes": (placed(b""), "failed UNDECODABLE"),
    "over the cap": (
        placed(b'{"order_id":1,"note":"' + b"x" * CAP + b'"}'),
        "failed PAYLOAD_TOO_LARGE",
    ),
    "a newer version": (placed(b'{"order_id":1}', dulyversion="2"), "held NEWER_VERSION"),
    "an unknown command": (
        changed(placed(b"{}"), type="billing.other", kind="command", topic="billing"),
        "held UNKNOWN_TYPE",
    ),
    "older than the dedupe window": (
        placed(b'{"order_id":1}', time="1970-01-01T00:00:00Z"),
        "held DEDUPE_WINDOW_PASSED",
    ),
}


async def test_every_bad_message_is_kept_with_its_code(make_shop: MakeShop) -> None:
    shop = make_shop(payload_bytes_max=CAP)
    listen(shop)
    shop.prepare()
    good = placed(b'{"order_id":7}')
    await shop.deliver([*(message for message, _ in BAD.values()), good])
    await shop.app.run_once(timeout="30s")
    inbox = shop.inbox()
    assert {name: inbox.get(message.id) for name, (message, _) in BAD.items()} == {
        name: expected for name, (_, expected) in BAD.items()
    }
    assert inbox[good.id] == "done"
    assert shop.work() == [7]
    rows = shop.query("SELECT message_id, payload FROM duly_inbox WHERE status <> 'done'")
    assert {message_id: bytes(payload) for message_id, payload in rows} == {
        message.id: message.payload for message, _ in BAD.values()
    }


async def test_an_unknown_event_is_nobodys_business_here_and_counted(local: Shop) -> None:
    shop = local
    listen(shop)
    shop.prepare()
    facts: list[Fact] = []
    shop.app.hooks.add(facts.append)
    await shop.deliver([changed(placed(b"{}"), type="order.unknown"), placed(b'{"order_id":1}')])
    await shop.app.run_once(timeout="30s")
    skipped = [fact for fact in facts if isinstance(fact, Skipped)]
    assert [(fact.type, fact.count) for fact in skipped] == [("order.unknown", 1)]
    assert shop.work() == [1]


async def test_of_two_bodies_with_one_id_the_first_wins(local: Shop) -> None:
    shop = local
    listen(shop)
    shop.prepare()
    first = placed(b'{"order_id":1}')
    await shop.deliver([first])
    await shop.app.run_once(timeout="30s")
    await shop.deliver([placed(b'{"order_id":2}', id=first.id)])
    await shop.app.run_once(timeout="30s")
    assert shop.work() == [1]
    assert shop.inbox() == {first.id: "done"}


async def test_messages_without_any_id_are_handled_each_for_itself(make_shop: MakeShop) -> None:
    shop = make_shop()
    listen(shop)
    shop.prepare()
    await shop.deliver([placed(b'{"order_id":1}', id=""), placed(b'{"order_id":2}', id="")])
    await shop.app.run_once(timeout="30s")
    assert shop.work() == [1, 2]
    assert len(shop.inbox()) == 2
    assert all(shop.inbox())


async def test_the_same_place_of_the_log_is_the_same_message(local: Shop) -> None:
    """Without an id the place in a durable log is the identity, also when it is read again."""
    listen(local)
    local.prepare()
    await local.deliver([placed(b'{"order_id":1}', id="")])
    await local.app.run_once(timeout="30s")
    (identity,) = local.inbox()
    assert identity.startswith("orders/")
    broker = local.app.make_broker()
    await broker.start()
    try:
        (seen,) = await broker.peek("orders", after="")
        assert identity.endswith(f"/{seen.position}")
    finally:
        await broker.close()


async def test_headers_of_a_foreign_sender_do_no_harm(local: Shop) -> None:
    """What we would not send is handled when it comes: it is text, and never becomes SQL."""
    shop = local
    listen(shop)
    shop.prepare()
    many = placed(b'{"order_id":1}', **{f"x{n}": "v" for n in range(1_000)})
    odd = placed(b'{"order_id":2}', quote="'; DROP TABLE duly_inbox; --")
    await shop.deliver([many, odd])
    await shop.app.run_once(timeout="30s")
    assert shop.work() == [1, 2]


async def test_a_header_with_a_line_break_is_held_with_its_name_and_an_edit_lets_it_pass(
    sqlite_url: str, rabbitmq_url: str
) -> None:
    shop = Shop(sqlite_url, rabbitmq_url)
    listen(shop)
    shop.prepare()
    bad = placed(b'{"order_id":2}', odd="a\r\nInjected: yes", fine="x")
    await shop.deliver([bad, placed(b'{"order_id":1}')])
    await shop.app.run_once(timeout="30s")
    assert shop.work() == [1]
    (row,) = shop.app.operator().find("inbox", Scope(statuses=("held",)))
    assert (row.message_id, row.error) == (
        bad.id,
        "UNDECODABLE: header 'odd' with CR, LF or NUL",
    )
    detail = shop.app.operator().show("inbox", row.id)
    assert "odd" not in detail.headers
    assert (detail.headers["fine"], detail.payload) == ("x", {"order_id": 2})
    shop.app.operator().edit("inbox", row.id, b'{"order_id":2}', by=By("anna", "harmless"))
    await shop.app.run_once(timeout="30s")
    assert shop.work() == [1, 2]
    shop.close()
