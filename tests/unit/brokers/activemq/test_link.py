"""What a connection believes."""

from __future__ import annotations

import asyncio

from duly.brokers.activemq.link import Connection
from duly.brokers.activemq.settings import parse

CONNECTED = b"CONNECTED\nversion:1.2\n\n\0"


async def test_no_receipt_is_believed_behind_an_error() -> None:
    """Seen of Artemis 2.44 when it is busy: SEND is refused, and its COMMIT has a receipt."""
    connection = Connection(parse("stomp://duly:secret@127.0.0.1:1/shop"))
    answers: dict[str, list[str]] = {"first": [], "second": [], "third": []}
    one, two, three = (connection.expect(got.append).encode() for got in answers.values())
    connection.data_received(CONNECTED)
    connection.data_received(
        b"RECEIPT\nreceipt-id:" + one + b"\n\n\0"
        b"ERROR\nmessage:AMQ229032 no right\n\n\0"
        b"RECEIPT\nreceipt-id:" + two + b"\n\n\0"
        b"ERROR\nreceipt-id:" + three + b"\nmessage:no such transaction\n\n\0"
    )
    await asyncio.sleep(0)
    assert answers["first"] == [""]
    assert answers["second"] == []
    assert len(answers["third"]) == 1
    assert answers["third"][0], "why"
    assert connection.gone.done()
