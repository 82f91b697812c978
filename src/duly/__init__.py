"""duly: reliable integration between systems - outbox, relay, idempotent consumers, effects."""

from typing import TYPE_CHECKING, Any

from duly.app import App
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import BatchError, DulyError
from duly.frameworks.dbapi import atomic
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel.backoff import Retry
from duly.message import Command, Event, Message
from duly.outbox.after_commit import FailureLog, Ignore
from duly.outbox.publish import UNKEYED

if TYPE_CHECKING:
    from duly.cdc.effects import ChangeTx
    from duly.kernel.changes import ABSENT, Change, Intent, Transaction
    from duly.kernel.rules import Emit

__all__ = [
    "ABSENT",
    "UNKEYED",
    "App",
    "AsyncTx",
    "BatchError",
    "Change",
    "ChangeTx",
    "Command",
    "DulyError",
    "Emit",
    "Event",
    "FailureLog",
    "Ignore",
    "Intent",
    "Message",
    "Retry",
    "Transaction",
    "Tx",
    "atomic",
    "sqlite_engine",
]

_WHEN_ASKED = {
    "ABSENT": "duly.kernel.changes",
    "Change": "duly.kernel.changes",
    "ChangeTx": "duly.cdc.effects",
    "Emit": "duly.kernel.rules",
    "Intent": "duly.kernel.changes",
    "Transaction": "duly.kernel.changes",
}


def __getattr__(name: str) -> Any:
    """Names that only some programs need are imported when they are first asked for."""
    if name not in _WHEN_ASKED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_WHEN_ASKED[name]), name)
    return found
