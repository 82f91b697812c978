"""duly: reliable integration between systems - outbox, relay, idempotent consumers, effects."""

from duly.app import App
from duly.databases.sqlite.engine import sqlite_engine
from duly.errors import BatchError, DulyError
from duly.frameworks.dbapi import atomic
from duly.inbox.transaction import AsyncTx, Tx
from duly.kernel.backoff import Retry
from duly.message import Command, Event, Message
from duly.outbox.after_commit import FailureLog, Ignore

__all__ = [
    "App",
    "AsyncTx",
    "BatchError",
    "Command",
    "DulyError",
    "Event",
    "FailureLog",
    "Ignore",
    "Message",
    "Retry",
    "Tx",
    "atomic",
    "sqlite_engine",
]
