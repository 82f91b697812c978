"""duly: reliable integration between systems - outbox, relay, idempotent consumers, effects."""

from duly.app import App
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import BatchError, DulyError
from duly.frameworks.dbapi import atomic
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel.backoff import Retry
from duly.kernel.changes import ABSENT, Change, Intent, Transaction
from duly.kernel.rules import Emit
from duly.message import Command, Event, Message
from duly.outbox.after_commit import FailureLog, Ignore
from duly.outbox.publish import UNKEYED

__all__ = [
    "ABSENT",
    "UNKEYED",
    "App",
    "AsyncTx",
    "BatchError",
    "Change",
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
