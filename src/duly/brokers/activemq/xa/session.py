"""One XA session with the server, and what its errors mean.

Owns the calls of the server's client; each blocks, and lasts at most the timeout of the URL.  The
invariants: a lost connection is an error at once, never mended in silence, as nobody would know
what became of the branch; and an Xid is duly's format number, the transaction (with its journal)
and the branch's place, so that a branch can be told among those of other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from duly.brokers.activemq.xa.jvm import Java
from duly.brokers.activemq.xa.settings import XaSettings
from duly.errors import BrokerUnavailableError, ConfigurationError, DulyError, RetryableError
from duly.kernel.twophase import parse_branch

__all__ = [
    "COMMITTED_BY_HAND",
    "FORMAT",
    "NOT_THERE",
    "ROLLED_BACK_BY_HAND",
    "XaError",
    "XaSession",
    "call",
]

T = TypeVar("T")
ANSWER_SECONDS = 2  # of its management, which does not say that it may not be asked
FORMAT = 0x64756C79  # "duly"
NOT_THERE = -4  # XAER_NOTA
COMMITTED_BY_HAND, ROLLED_BACK_BY_HAND = 7, 6  # XA_HEURCOM, XA_HEURRB
_ROLLED_BACK = range(100, 108)  # XA_RBBASE to XA_RBEND
_SUCCESS, _WHOLE_SCAN = 0x4000000, 0x1000000 | 0x800000
_ARTEMIS = "org.apache.activemq.artemis"
_API = f"{_ARTEMIS}.api.core"


class XaError(RetryableError):
    """An answer of XA with its number; whoever does not expect it lets it go on as it is."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(detail, code="XA_REFUSED")
        self.number = number


class XaSession:
    """One session. opened: by ``XaBroker``; it is used by one thread at a time."""

    def __init__(self, java: Java, settings: XaSettings, opened: Any) -> None:
        self._java, self._settings, self._session = java, settings, opened

    # --- XA -----------------------------------------------------------------------------------
    def begin(self, name: str) -> None:
        """Begin a branch."""
        self._call(lambda: self._session.start(self._xid(name), 0))

    def end(self, name: str) -> None:
        """Say that the branch has all of its work."""
        self._call(lambda: self._session.end(self._xid(name), _SUCCESS))

    def prepare(self, name: str) -> None:
        """Prepare what has ended. Raises what the server held against a message of it."""
        self._call(lambda: self._session.prepare(self._xid(name)))

    def finish(self, name: str, *, commit: bool) -> None:
        """End a branch, of this session or of none. Raises XaError."""
        if commit:
            self._call(lambda: self._session.commit(self._xid(name), False))
        else:
            self._call(lambda: self._session.rollback(self._xid(name)))

    def prepared(self) -> list[str]:
        """The names of duly's branches that are prepared, or were ended by hand."""
        return self._call(self._prepared)

    def forget(self, name: str) -> None:
        """Let the server forget how a branch was ended by hand. Raises XaError."""
        self._call(lambda: self._session.forget(self._xid(name)))

    # --- messages -----------------------------------------------------------------------------
    def has_queue(self, address: str) -> bool:
        """Whether anybody would get a message that is sent there."""

        def ask() -> bool:
            name = self._java.find(f"{_API}.SimpleString").of(address)
            return bool(self._session.addressQuery(name).getQueueNames().size())

        return self._call(ask)

    def send(self, address: str, routing: str, *, headers: dict[str, str], body: bytes) -> None:
        """Send a durable message in the branch. Refusals come with ``prepare``."""

        def say() -> None:
            types = self._java.find(f"{_API}.Message")
            message = self._session.createMessage(types.BYTES_TYPE, True)
            message.setRoutingType(getattr(self._java.find(f"{_API}.RoutingType"), routing))
            for name, value in headers.items():
                message.putStringProperty(name, value)
            message.getBodyBuffer().writeBytes(body)
            producer = self._session.createProducer()
            producer.send(address, message)
            producer.close()

        self._call(say)

    def ask(self, attribute: str) -> bool | None:
        """Whether a setting of the server is on, by its management; None where that is not said."""
        return self._call(lambda: self._asked(attribute))

    def close(self) -> None:
        """Close it; what is prepared stays. Never raises. Idempotent."""
        with suppress(DulyError):
            self._call(self._close)

    # --- inside Java ----------------------------------------------------------------------------
    def _call(self, job: Callable[[], T]) -> T:
        return call(job, java=self._java, settings=self._settings)

    def _xid(self, name: str) -> Any:
        transaction, _, place = name.rpartition("-")
        make = self._java.find(f"{_ARTEMIS}.core.transaction.impl.XidImpl")
        return make(place.encode(), FORMAT, transaction.encode())

    def _prepared(self) -> list[str]:
        names = []
        for xid in self._session.recover(_WHOLE_SCAN):
            if int(xid.getFormatId()) == FORMAT:
                parts = bytes(xid.getGlobalTransactionId()), bytes(xid.getBranchQualifier())
                names.append(b"-".join(parts).decode(errors="replace"))
        return [name for name in names if parse_branch(name)]

    def _asked(self, attribute: str) -> bool | None:
        management = f"{_API}.management"
        helper = self._java.find(f"{management}.ManagementHelper")
        question = self._session.createMessage(False)
        server = self._java.find(f"{management}.ResourceNames").BROKER
        helper.putAttribute(question, server, attribute)
        self._session.start()
        requestor = self._java.find(f"{_API}.client.ClientRequestor")
        asking = requestor(self._session, "activemq.management")
        answer = asking.request(question, ANSWER_SECONDS * 1000)
        if answer is None or not helper.hasOperationSucceeded(answer):
            return None
        return bool(helper.getResult(answer))

    def _close(self) -> None:
        if self._session is not None:
            opened, self._session = self._session, None
            opened.close()


def call(job: Callable[[], T], *, java: Java, settings: XaSettings) -> T:
    """Do something in Java, whose exceptions come as ours. Nothing of Java's leaves this thread
    with them: whoever drops it elsewhere would be one of Java's threads for good.
    """
    with java.attached():
        try:
            return job()
        except java.Exception as error:
            failure = _failure(settings, error)
    raise failure


def _failure(settings: XaSettings, error: Any) -> DulyError:
    cause = error.getCause() or error
    text = str(cause.getMessage() or "")
    shown = f"{settings.shown}: {text}"[:300]
    if "SecurityException" in type(cause).__name__:
        login = "AMQ229031" in text
        code = "ACTIVEMQ_LOGIN_REFUSED" if login else "ACTIVEMQ_RIGHTS"
        detail = f"{settings.shown}: the server refused the login" if login else shown
        return ConfigurationError(detail, code=code)
    number = getattr(error, "errorCode", None)
    if number is None:
        kind = type(error).__name__.rpartition(".")[2]
        return BrokerUnavailableError(f"{settings.shown}: {kind}: {text}"[:300])
    if int(number) in (NOT_THERE, COMMITTED_BY_HAND, ROLLED_BACK_BY_HAND, *_ROLLED_BACK):
        return XaError(int(number), f"{shown} (XA {int(number)})")
    return BrokerUnavailableError(f"{shown} (XA {int(number)})")
