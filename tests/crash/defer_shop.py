"""The App of the deferred calls: two calls to one peer, and who gets their answers.

``charge`` is keyed: the peer knows a repetition.  ``push`` is not: nobody may make it twice, and
what became of one in doubt only a person can find out.  The peer talks one line of JSON over TCP;
closing the connection without an answer leaves its caller in doubt.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from sqlalchemy import text

from duly.app import App
from duly.brokers.embedded.broker import EmbeddedBroker
from duly.calls import Answer, Retry
from duly.errors import OutcomeUnknownError
from duly.inbox.transaction import AsyncTx, Tx

CALL_SECONDS = 5.0
LATER = Retry(attempts=10_000, base="30ms", max="200ms")
PAID = text("INSERT INTO crash_paid (op, pid) VALUES (:op, :pid)")


class DownError(Exception):
    """The peer has refused, and done nothing."""


def ask(config: dict[str, Any], **what: Any) -> str:
    """One exchange with the peer; its receipt. Raises DownError, OutcomeUnknownError."""
    try:
        with socket.create_connection(("127.0.0.1", config["peer"]), timeout=CALL_SECONDS) as peer:
            line = json.dumps({**what, "who": config["who"], "pid": os.getpid()})
            peer.sendall(line.encode() + b"\n")
            answer = peer.makefile("rb").readline()
    except ConnectionRefusedError as error:
        raise DownError from error
    except OSError as error:
        raise OutcomeUnknownError("the connection broke") from error
    if not answer.endswith(b"\n"):
        raise OutcomeUnknownError("no answer")
    if answer == b"refused\n":
        raise DownError
    return answer.decode().strip()


def make_app(config: dict[str, Any]) -> tuple[App, Any, Any]:
    """The App and its two calls. config: database, broker, peer (a port), who, the lease."""
    names = ("lease_ttl", "renew_every", "send_timeout")
    leases = {name: config[name] for name in names}
    broker = EmbeddedBroker(config["broker"], lease_seconds=config["broker_lease"])
    app = App("defer", database=config["database"], broker=broker, **leases)
    options = {"retry": Retry(attempts=1, on=(DownError,)), "defer": LATER}

    @app.call(deadline=CALL_SECONDS, key_as="key", **options)  # type: ignore[arg-type]
    def charge(op: int, key: str = "") -> str:
        return ask(config, op=op, key=key)

    @charge.done
    def charged(answer: Answer[str], tx: Tx) -> None:
        tx.session.execute(PAID, {"op": answer.arguments["op"], "pid": os.getpid()})

    @app.call(deadline=CALL_SECONDS, **options)  # type: ignore[arg-type]
    async def push(op: int) -> str:
        return ask(config, op=op, key="")

    @push.done
    async def pushed(answer: Answer[str], tx: AsyncTx) -> None:
        await tx.session.execute(PAID, {"op": answer.arguments["op"], "pid": os.getpid()})

    return app, charge, push
