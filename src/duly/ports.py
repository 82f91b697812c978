"""The Protocols that every adapter implements, and the values that cross them.

Three decisions shape this page:

* A *store* is statements, not connections.  A feature writes its database work as a generator that
  yields ``Statement`` values and receives ``Result`` values (a ``Steps``).  Whoever owns a
  connection - a thread of ours, the user's sync session, the user's async session - drives it.  So
  no statement is written twice for sync and async.
* A broker takes and gives *batches*.  One await per batch, one outcome per message, three outcomes:
  confirmed, refused, unknown.
* A join binds duly's buffer to somebody else's transaction and promises only that the buffer is
  written as its last statement, or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from duly.message import Message

__all__ = [
    "Broker",
    "BrokerFeatures",
    "Clock",
    "Connection",
    "Database",
    "Delivery",
    "Finding",
    "GroupStatus",
    "GuardsAtOnce",
    "Loss",
    "MakesEngine",
    "Outcome",
    "OutcomeKind",
    "Peeked",
    "PublishesInSql",
    "ReportsLosses",
    "Result",
    "Severity",
    "Statement",
    "Steps",
    "Subscription",
    "SubscriptionSpec",
    "TopicSpec",
    "TopicStatus",
]

T = TypeVar("T")


# --- statements -----------------------------------------------------------------------------------
class Statement(NamedTuple):
    """One named statement of the store and its values.

    name: as in the ``sql/*.sql`` files of each dialect, e.g. ``"outbox.settle"``.
    params: values by name; lists become arrays (PostgreSQL) or JSON (SQLite).
    many: one mapping per row, for inserts of several rows; ``params`` then only says how.
    """

    name: str
    params: Mapping[str, Any] = {}
    many: Sequence[Mapping[str, Any]] | None = None


class Result(NamedTuple):
    """What a statement gave back: its rows (tuples, in the order the statement names them) and its
    row count.
    """

    rows: list[tuple[Any, ...]]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks a result for


Steps = Generator[Statement, Result, T]


class Connection(Protocol):
    """A private connection of ours to the App's database; used by one thread at a time."""

    def run(self, steps: Steps[T]) -> T:
        """Drive ``steps`` in one transaction and commit it.

        Raises RetryableError (nothing happened), OutcomeUnknownError (lost during the commit),
        PermanentError.
        """
        ...

    def ask(self, statement: Statement) -> Result:
        """Run one statement by itself, committed when it returns. Raises as ``run``."""
        ...

    def script(self, text: str) -> None:
        """Run the SQL text of a migration, alone and in one transaction."""
        ...

    def wait(self, timeout_seconds: float) -> bool:
        """Block until somebody committed new work, or the time is over; True when woken. A hint,
        never a promise.
        """
        ...

    def wake(self) -> None:
        """End a ``wait`` of this connection early, from any thread."""
        ...

    def close(self) -> None:
        """Give the connection back; never raises."""
        ...


class Database(Protocol):
    """The database that holds the App's tables."""

    @property
    def dialect(self) -> str:
        """``sqlite``, ``postgres`` ...: the key of statements, migrations and documentation."""
        ...

    def connect(self) -> Connection:
        """Open a private connection with our own timeouts. Raises DatabaseUnavailableError,
        ConfigurationError.
        """
        ...

    def engine(self) -> Any:
        """The sync SQLAlchemy Engine for handlers' ``tx.session``; the user's own where one was
        given.
        """
        ...

    def async_engine(self) -> Any:
        """The AsyncEngine for async handlers; the user's own where one was given."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """A fair gate before a BEGIN of ours, held while the write lock is asked for."""
        ...

    def prepare(self, statement: Statement) -> Sequence[tuple[str, Any, bool]]:
        """The driver calls for a statement: (sql, parameters, is_executemany), in order. Pure."""
        ...

    def map_error(self, error: Exception) -> Exception:
        """A driver's exception as one of ours; other exceptions unchanged. The only place that
        reads SQLSTATE.
        """
        ...

    @property
    def notifies(self) -> bool:
        """Whether a sleeping relay must mark itself asleep to be woken by a flush."""
        ...

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """As ``Outlet.admits``."""
        ...

    def create(self) -> Steps[None]:
        """Make the tables where they make themselves and are not there; runs in a user's
        transaction and commits with it. Nothing elsewhere.
        """
        ...

    def migrations(self) -> Sequence[tuple[int, str, str]]:
        """(version, name, SQL text) of every migration, in order."""
        ...

    def inspect(self) -> Sequence[Finding]:
        """What ``check`` and ``doctor`` say of this server: durability, isolation, rights, sequence
        cache, version.
        """
        ...

    def close(self) -> None:
        """Close what this object opened itself (never the user's engine)."""
        ...


@runtime_checkable
class GuardsAtOnce(Protocol):
    """What a Database may have besides: a handler's transaction begun and ended in one round trip
    each. The statements ``inbox.guard`` and ``inbox.unguard`` say what is meant.
    """

    def begin_guarded(self, driver: Any) -> bool:
        """BEGIN and set the guard; False, and nothing done, where this connection of a driver has
        to be asked step by step. Raises the driver's errors.
        """
        ...

    def commit_guarded(self, driver: Any) -> Exception | None:
        """Release the guard and COMMIT. Raises the driver's error when the guard could not be
        released: nothing is committed then. Returns the driver's error of COMMIT, as well when
        nobody knows how far it came.
        """
        ...


@runtime_checkable
class MakesEngine(Protocol):
    """What may be given for a database instead of its URL: a framework's own description of it."""

    @property
    def url(self) -> str:
        """Where the database is, with the password; read when the App is wired."""
        ...

    def make_engine(self) -> Any:
        """The sync Engine for handlers. Its execution option ``duly_shared`` is a function that
        takes the way to a handler's driver connection and gives a context manager, entered while
        the handler runs; what that yields is called before the commit and raises to prevent it.
        ``duly_using`` is what ``tx.using`` gives.
        """
        ...


@runtime_checkable
class PublishesInSql(Protocol):
    """What a Database may have besides: publishing for triggers and programs in any language."""

    def publish_routine(self, app: str) -> str:
        """The one SQL statement that makes the routine ``duly_publish``; app: the messages' source.

        Guarantee: what it stores commits with the caller's transaction, and keeps its place among
        the messages of its key. Raises InvalidNameError.
        """
        ...


# --- brokers --------------------------------------------------------------------------------------
class OutcomeKind(Enum):
    """The three outcomes of an outside call, refused split by whether it is worth trying again."""

    CONFIRMED = "confirmed"
    UNROUTED = "unrouted"  # the broker has it nowhere: nobody is bound
    REFUSED = (
        "refused"  # not done, this message's own fault or the destination's: uses up an attempt
    )
    IMPOSSIBLE = "impossible"  # not done and never will be: too large, not encodable
    UNAVAILABLE = "unavailable"  # not done: no connection; uses up no attempt
    UNKNOWN = "unknown"  # sent, no answer: send again under the same id


class Outcome(NamedTuple):
    """What became of one message of a publish."""

    kind: OutcomeKind
    error: str = ""


CONFIRMED = Outcome(OutcomeKind.CONFIRMED)


@dataclass(frozen=True, slots=True)
class BrokerFeatures:
    """What an adapter declares; the conformance suite asserts what is declared and the absence of
    what is not.
    """

    durable: bool = False  # confirmed messages survive a crash of the broker
    ordered_source: bool = False  # one active receiver per partition or queue
    atomic_batch: bool = False  # a publish is stored whole and in order, or not at all
    reports_unrouted: bool = False  # says when nobody is bound
    redelivers: bool = False  # unacked deliveries come back after a crash of the receiver
    late_subscriber_sees_history: bool = False  # a new group can start at the beginning
    payload_bytes_max: int | None = None


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A place that is published to. kind: ``event`` (many groups) or ``command`` (one queue)."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class SubscriptionSpec:
    """What one group reads. topics: event topics, or the one command queue. ordered: one active
    receiver per source.
    """

    group: str
    topics: tuple[TopicSpec, ...]
    ordered: bool = False
    prefetch: int = 1000
    from_start: bool = True  # where a new group begins, on brokers that keep history


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One received message. token: what ack needs; source: the queue or partition it came from;
    position: its place there, as text, for messages that carry no id, empty where none stays the
    same; redelivered: the broker's own hint; False means that nobody has had it before."""

    message: Message
    token: Any
    source: str
    position: str
    redelivered: bool = False


class Subscription(Protocol):
    """A running subscription of one group."""

    def batches(self) -> AsyncIterator[list[Delivery]]:
        """Batches of 1 to ``prefetch`` deliveries, until closed. Reconnects by itself; never ends
        on an error.
        """
        ...

    async def ack(self, tokens: Sequence[Any]) -> None:
        """Everything with these tokens is done. Late acks of a lost connection are dropped, not
        raised.
        """
        ...

    async def release(self, tokens: Sequence[Any]) -> None:
        """Give back undone deliveries at once (drain); others get them, or we after a restart."""
        ...

    async def close(self) -> None:
        """Stop receiving, give back what is unacked. Idempotent."""
        ...


class GroupStatus(NamedTuple):
    """How far a group is. read: messages it is done with, None where the broker keeps no history;
    lag: those it has yet to do; members: receivers that are connected now."""

    group: str
    read: int | None
    lag: int
    members: int


class TopicStatus(NamedTuple):
    """A topic or queue as the broker sees it. depth: messages it holds; groups: one per reader."""

    name: str
    kind: str
    depth: int
    groups: tuple[GroupStatus, ...]


class Peeked(NamedTuple):
    """A stored message, looked at without consuming it. cursor: pass it as ``after`` to go on
    behind it; created_at: seconds since 1970."""

    cursor: str
    created_at: float
    source: str
    position: str
    message: Message


@runtime_checkable
class Broker(Protocol):
    """A message broker: at least once, confirmed."""

    features: BrokerFeatures

    async def start(self) -> None:
        """Connect in the background; does not wait for the server. Raises ConfigurationError for a
        bad URL.
        """
        ...

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Make sure that topics and groups' queues exist, before anything is relayed. Idempotent.

        Raises BrokerUnavailableError (again later), ConfigurationError (an existing queue has other
        arguments).
        """
        ...

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Send a batch and wait for its confirms; one outcome per message, in order. Raises nothing
        of the broker's.

        Past the deadline an unanswered message is UNKNOWN, an unsent one UNAVAILABLE, and nothing
        of this call may be sent afterwards.  Several calls may be under way at once.
        """
        ...

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start receiving for one group."""
        ...

    async def inspect(self) -> Sequence[Finding]:
        """What ``check`` and ``doctor`` say of this broker: durability verdict with its reason,
        version.
        """
        ...

    async def topics(self) -> Sequence[TopicStatus]:
        """What was declared, with depth and lag. Raises BrokerUnavailableError."""
        ...

    async def peek(
        self, topic: str, *, after: str | None = None, limit: int = 20
    ) -> Sequence[Peeked]:
        """Stored messages behind a cursor, without consuming them.

        Raises OperatorError (code PEEK_UNSUPPORTED) where the broker cannot do that.
        """
        ...

    async def close(self) -> None:
        """Close the connection within a few seconds. Idempotent."""
        ...


class Loss(NamedTuple):
    """Something the broker had and has no more. place: the topic or queue, as the broker names it;
    group: whose, empty for all; messages: how many, None when nobody can count them."""

    place: str
    group: str
    messages: int | None


@runtime_checkable
class ReportsLosses(Protocol):
    """A broker that can find out that its server has lost something; others are not asked."""

    def report_losses(self, tell: Callable[[Loss], None]) -> None:
        """Call ``tell`` for every loss found from now on, from any thread."""
        ...


# --- checks ---------------------------------------------------------------------------------------
class Severity(Enum):
    """green: carries the guarantee. weak: carries it with a named exception. red: does not carry
    it.
    """

    GREEN = "green"
    WEAK = "weak"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``check`` or ``doctor``. code: stable; message: what was read and what it means;
    fix: what to do.
    """

    code: str
    severity: Severity
    message: str
    fix: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Clock(Protocol):
    """Time, so that tests can move it."""

    def time(self) -> float:
        """Seconds since 1970, may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back and go on while the machine sleeps (CLOCK_BOOTTIME)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        ...


# --- joining somebody else's transaction ----------------------------------------------------------
class Pending(Protocol):
    """Something that waits for the commit of a user's transaction: a message to store, or work for
    afterwards.
    """

    @property
    def outlet(self) -> Outlet | None:
        """Who stores it; None for what only waits for the commit."""
        ...

    @property
    def frozen(self) -> bool:
        """True when nothing is left to compute."""
        ...

    def resolve(self) -> None:
        """Compute late-bound values and freeze; SQL is still legal. What it raises ends the user's
        transaction.
        """
        ...

    def committed(self) -> None:
        """The outermost commit succeeded. What it raises is handed to ``failed`` and never reaches
        the user's commit.
        """
        ...

    def failed(self, error: Exception) -> None:
        """``committed`` raised, or what it left open on the session could not be committed; never
        raises.
        """
        ...


class Outlet(Protocol):
    """Where the buffered messages of one App go when the transaction commits; compared and hashed
    by identity.
    """

    def prepare(self, statement: Statement) -> Sequence[tuple[str, Any, bool]]:
        """The driver calls of a statement (``Database.prepare``)."""
        ...

    def map_error(self, error: Exception) -> Exception:
        """A driver's exception as one of ours (``Database.map_error``)."""
        ...

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """Raise ConfigurationError when this is no connection to the App's own database.

        connection: the driver's own connection object. managed: an engine begins its transactions,
        so on SQLite it must be one that says BEGIN IMMEDIATE. Another driver's connection is
        refused by its class, before any statement: on PostgreSQL a failing one would spoil the
        user's transaction. Asked once per pool or raw connection.
        """
        ...

    def write(self, entries: Sequence[Pending], *, last: bool = True) -> Steps[None]:
        """The statements that store frozen entries; run on the user's connection.

        last: nothing but the commit follows them, so what a commit would check may be checked now.
        """
        ...

    def committed(self, entries: Sequence[Pending]) -> None:
        """The outermost commit of stored entries succeeded; wakes the relay. Never raises."""
        ...


class Join(Protocol):
    """One way of joining: SQLAlchemy, a DB-API connection, Django."""

    def buffer(self, target: Any, entry: Pending) -> None:
        """Attach ``entry`` to the innermost transaction frame of ``target``.

        No I/O where the target tells before it commits; else (raw connections) the entry is stored
        at once. Raises NotInTransactionError, ConfigurationError.
        """
        ...

    def flush(self, target: Any) -> None:
        """Store what is buffered so far in the open transaction; for tests that never commit."""
        ...
