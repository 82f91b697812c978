"""What a global transaction asks of ActiveMQ Artemis: branches that messages are sent in.

Owns the one connection that all sessions of a process share, and the state of each branch.  The
invariant: a branch that was not prepared is rolled back when it is given up, so that the server
keeps nothing of it; one that was, or may have been, is left to its decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

from duly.branches import Finished
from duly.brokers.activemq.entries import properties
from duly.brokers.activemq.topology import address_of, routing_of
from duly.brokers.activemq.xa.jvm import java
from duly.brokers.activemq.xa.session import (
    COMMITTED_BY_HAND,
    NOT_THERE,
    ROLLED_BACK_BY_HAND,
    XaError,
    XaSession,
    call,
)
from duly.brokers.activemq.xa.settings import XaSettings, parse
from duly.errors import DulyError, RetryableError
from duly.message import Message
from duly.ports import Finding, Severity, TopicSpec

__all__ = ["XaBranch", "XaBroker"]

_CLIENT = "org.apache.activemq.artemis.api.core.client.ActiveMQClient"
_ACK_BATCH_BYTES = 1_048_576  # of receivers, which there are none of; the client wants a number
_ENDED = {
    NOT_THERE: Finished.GONE,
    COMMITTED_BY_HAND: Finished.COMMITTED,
    ROLLED_BACK_BY_HAND: Finished.ROLLED_BACK,
}
_KEPT = {
    "persistenceEnabled": "persistence-enabled",
    "journalSyncTransactional": "journal-sync-transactional",
}


class XaBroker:
    """One server as a participant. url: as ``settings`` has it. Safe to use from any thread;
    nothing is opened, and no Java VM started, before it is used.
    """

    dialect = "activemq"

    def __init__(self, url: str) -> None:
        self.settings: XaSettings = parse(url)
        self._lock = Lock()
        self._factory: Any = None
        self._locator: Any = None

    def connect(self) -> XaSession:
        """A session. Raises MissingExtraError, ConfigurationError, BrokerUnavailableError."""
        settings = self.settings
        found = java(settings.jars)

        def opened() -> XaSession:
            login = settings.user or None, settings.password or None
            made = self._live_factory(found).createSession(
                *login, True, False, False, False, _ACK_BATCH_BYTES
            )
            return XaSession(found, settings, made)

        return call(opened, java=found, settings=settings)

    def branch(self, name: str) -> XaBranch:
        """As ``PreparesMessages``."""
        return XaBranch(self, name)

    def prepared(self, connection: XaSession) -> list[str]:
        """As ``EndsBranches``; those that were ended by hand among them, until ``forget``."""
        return connection.prepared()

    def finish(self, connection: XaSession, name: str, *, commit: bool) -> Finished:
        """As ``EndsBranches``."""
        try:
            connection.finish(name, commit=commit)
        except XaError as error:
            if error.number not in _ENDED:
                raise
            return _ENDED[error.number]
        return Finished.DONE

    def forget(self, connection: XaSession, name: str) -> None:
        """As ``PreparesMessages``."""
        try:
            connection.forget(name)
        except XaError as error:
            if error.number != NOT_THERE:
                raise

    def inspect_prepared(self) -> list[Finding]:
        """As ``EndsBranches``. Raises as ``connect``."""
        session = self.connect()
        try:
            text = f"XA, {len(session.prepared())} branches of duly's are prepared"
            for name, wanted in _KEPT.items():
                kept = session.ask(name)
                if kept is None:
                    text = "its management does not say whether it waits for its disk"
                    fix = "give this login the right to send to activemq.management, and manage"
                    return [Finding("ACTIVEMQ_XA", Severity.WEAK, text, fix)]
                if not kept:
                    text = f"{wanted} is false: a crash of the server can undo a decision"
                    fix = f"set {wanted} to true"
                    return [Finding("GLOBAL_TX_NOT_DURABLE", Severity.RED, text, fix)]
            return [Finding("ACTIVEMQ_XA", Severity.GREEN, text)]
        finally:
            session.close()

    def close(self) -> None:
        """Close the connection, if there is one; the Java VM stays."""
        with self._lock:
            if self._locator is not None:
                with suppress(DulyError):
                    call(self._close, java=java(self.settings.jars), settings=self.settings)
            self._factory = self._locator = None

    def _close(self) -> None:
        locator, self._locator, self._factory = self._locator, None, None
        locator.close()

    def _live_factory(self, found: Any) -> Any:
        with self._lock:
            if self._locator is None:
                self._locator = self._make_locator(found)
            connection = None if self._factory is None else self._factory.getConnection()
            if connection is None or connection.isDestroyed():
                self._factory = self._locator.createSessionFactory()
            return self._factory

    def _make_locator(self, found: Any) -> Any:
        locator = found.find(_CLIENT).createServerLocator(self.settings.locator)
        locator.setInitialConnectAttempts(1)
        locator.setReconnectAttempts(0)
        locator.setCallTimeout(self.settings.timeout_seconds * 1000)
        locator.setProducerWindowSize(-1)  # waiting for the server's credit has no timeout
        return locator


class XaBranch:
    """As ``MessageBranch``."""

    def __init__(self, broker: XaBroker, name: str) -> None:
        self._broker, self._name = broker, name
        self._session: XaSession | None = None
        self._is_open = self._has_ended = False

    def deliver(self, messages: Sequence[Message]) -> list[Message]:
        """As ``MessageBranch``. Raises RetryableError (COMMAND_UNROUTED): nobody reads its queue,
        and as ``XaBroker.connect``.
        """
        session = self._session = self._broker.connect()
        prefix = self._broker.settings.prefix
        topics = dict.fromkeys(TopicSpec(message.topic, message.kind) for message in messages)
        read = {topic: session.has_queue(address_of(prefix, topic)) for topic in topics}
        for topic, is_read in read.items():
            if topic.kind == "command" and not is_read:
                text = f"nobody reads {address_of(prefix, topic)}: it has no queue"
                raise RetryableError(text, code="COMMAND_UNROUTED")
        session.begin(self._name)
        self._is_open = True
        unrouted = []
        for message in messages:
            topic = TopicSpec(message.topic, message.kind)
            if not read[topic]:
                unrouted.append(message)
                continue
            headers, address = properties(message), address_of(prefix, topic)
            session.send(address, routing_of(topic), headers=headers, body=message.payload)
        session.end(self._name)
        self._has_ended = True
        return unrouted

    def prepare(self) -> None:
        """As ``MessageBranch``."""
        assert self._session is not None, "it was delivered"
        self._is_open = False  # from here on it may be prepared
        self._session.prepare(self._name)

    def finish(self, *, commit: bool) -> None:
        """As ``MessageBranch``."""
        assert self._session is not None, "it was delivered"
        self._is_open = False
        self._session.finish(self._name, commit=commit)

    def close(self) -> None:
        """As ``MessageBranch``."""
        if self._session is None:
            return
        with suppress(DulyError):  # then the server rolls it back when its time is over
            if self._is_open and not self._has_ended:
                self._session.end(self._name)
            if self._is_open:
                self._session.finish(self._name, commit=False)
        self._session.close()
